"""Synthetic probes of a student, with planted truths for the report to find."""

from typing import Any

import numpy as np

ALIVE = {"nsa": 0.5, "based": 0.3, "hedgehog": 0.0, "routing": 0.06}
"""How much more KL the window alone has, relative to it: alive, alive, dead, cannot tell."""
CLASSES = {
    "context": {"new": 0.5, "pair seen before": 2.0, "token seen before": 1.0},
    "frequency": {"rare: under 10 times": 1.5, "common: 10 times or more": 0.8},
}
FLOOR = {16: 1.0, 64: 0.5, 256: 0.5, 512: 0.49}
"""Untrained KL by number of random features: no longer falls from 64 on."""


def probes(rng: np.random.Generator, name: str, kind: str, kl: float) -> dict[str, list[dict[str, Any]]]:
    return {
        "layers": [{"layer": i, "error": 0.1 * (i + 1)} for i in range(4)],
        "branches": _branches(name, kl) if name in ALIVE else [],
        "pruned": _pruned(kl) if kind == "masks" else [],
        "features": _features(rng) if kind == "performer" else [],
    }


def by_class(kl: float) -> list[dict[str, Any]]:
    return [
        {"by": by, "class": name, "tokens": 9, "kl": kl * factor, "kl_se": 0.05 * kl}
        for by, factors in CLASSES.items()
        for name, factor in factors.items()
    ]


def _branches(name: str, kl: float) -> list[dict[str, Any]]:
    error = 0.05 if name == "routing" else 0.01
    window = kl / (1 - ALIVE[name])
    found = {"all" if name == "nsa" else "both": kl, "window": window, "far": 3 * kl}
    return [_compared(value, kl, error) | {"branches": branch} for branch, value in found.items()]


def _pruned(kl: float) -> list[dict[str, Any]]:
    """Eight of 24 can go for 1 % of the KL; its standard error is 3 %."""
    costs = {24: 1.0, 20: 1.005, 16: 1.01, 12: 1.5}
    rows = [{"kept": n, "of": 24, "threshold": 0.01 * (25 - n)} | _compared(kl * c, kl, 0.03) for n, c in costs.items()]
    return [row | {"blocks": 16} for row in rows]


def _features(rng: np.random.Generator) -> list[dict[str, Any]]:
    return [
        {"features": count, "draw": draw, "kl_forward": kl * float(np.exp(0.02 * rng.standard_normal()))}
        for count, kl in FLOOR.items()
        for draw in range(3)
    ]


def _compared(kl: float, whole: float, error: float) -> dict[str, float]:
    difference = 0.0 if kl == whole else error * whole
    return {"kl_forward": kl, "kl_forward_se": error * whole, "difference_se": difference, "blocks": 16}
