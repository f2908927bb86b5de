"""Synthetic probes of a student, with planted truths for the report to find."""

from typing import Any

import numpy as np

from attnopt.records.evaluate import BranchRow, ClassRow, FeatureRow, LayerRow, PrunedRow

ALIVE = {"nsa": 0.5, "based": 0.3, "hedgehog": 0.0, "routing": 0.06}
"""How much more KL the window alone has, relative to it: alive, alive, dead, cannot tell."""
CLASSES = {
    "context": {"new": 0.5, "pair seen before": 2.0, "token seen before": 1.0},
    "frequency": {"rare: under 10 times": 1.5, "common: 10 times or more": 0.8},
}
FLOOR = {16: 1.0, 64: 0.5, 256: 0.5, 512: 0.49}
"""Untrained KL by number of random features: no longer falls from 64 on."""


def probes(rng: np.random.Generator, name: str, kind: str, kl: float) -> dict[str, list[Any]]:
    return {
        "layers": [LayerRow(layer=i, error=0.1 * (i + 1)) for i in range(4)],
        "branches": _branches(name, kl) if name in ALIVE else [],
        "pruned": _pruned(kl) if kind == "masks" else [],
        "features": _features(rng) if kind == "performer" else [],
    }


def by_class(kl: float) -> list[ClassRow]:
    return [
        ClassRow(by=by, label=name, tokens=9, kl=kl * factor, kl_se=0.05 * kl, ce=4.5, teacher_ce=4.4)
        for by, factors in CLASSES.items()
        for name, factor in factors.items()
    ]


def _branches(name: str, kl: float) -> list[BranchRow]:
    error = 0.05 if name == "routing" else 0.01
    window = kl / (1 - ALIVE[name])
    found = {"all" if name == "nsa" else "both": kl, "window": window, "far": 3 * kl}
    return [BranchRow(branches=branch, **_compared(value, kl, error)) for branch, value in found.items()]


def _pruned(kl: float) -> list[PrunedRow]:
    """Eight of 24 can go for 1 % of the KL; its standard error is 3 %."""
    costs = {24: 1.0, 20: 1.005, 16: 1.01, 12: 1.5}
    return [
        PrunedRow(kept=n, of=24, threshold=0.01 * (25 - n), **_compared(kl * cost, kl, 0.03))
        for n, cost in costs.items()
    ]


def _features(rng: np.random.Generator) -> list[FeatureRow]:
    return [
        FeatureRow(features=count, draw=draw, kl_forward=kl * float(np.exp(0.02 * rng.standard_normal())))
        for count, kl in FLOOR.items()
        for draw in range(3)
    ]


def _compared(kl: float, whole: float, error: float) -> dict[str, Any]:
    difference = 0.0 if kl == whole else error * whole
    return {"kl_forward": kl, "kl_forward_se": error * whole, "difference_se": difference, "blocks": 16}
