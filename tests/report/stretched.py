"""Synthetic quality at length and recall, with planted truths for the report to find.

Windows forget what is farther back than WINDOW tokens; `based` and `nsa` do not; `hedgehog` is as close as they are and
recalls no more than a window. This teacher cannot read phone books.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from attnopt.records.evaluate import GapRow, LengthQuality, PositionBin, RecallRow
from attnopt.records.sample import GeneratedRecall
from attnopt.report.data.read import Records

from . import fake

LENGTH = 1024
BINS = [0, 64, 128, 256, 512, 1024]
GAPS = [(0, None), (1, 16), (16, 64), (64, 256), (256, None)]
WINDOW = 64
"""Tokens that a window sees."""
FAR = {"based": 1.1, "nsa": 1.0, "hedgehog": 1.6, "softmax": 1.0, "performer_256": 1.3}
"""KL beyond the window over KL within it; 4 for every other variant."""
KEEPS = {"based": 0.95, "nsa": 1.0, "softmax": 1.0}
"""Retention of recall beyond the window; 0.1 for every other variant."""
SIZES = {"copy": [16, 256], "pairs": [8, 64], "phone_book": [16], "needle": [512]}
TEACHER = {"copy": 0.99, "pairs": 0.96, "phone_book": 0.3, "needle": 1.0}
QUERIES = 100


def measured_at(records: Records, lengths: Iterable[int]) -> Records:
    """The same quality as if it had been measured at these lengths, with the states of these."""
    tables = {}
    for name in ("lengths", "bins", "gaps", "states"):
        table = getattr(records, name)
        tables[name] = pd.concat([table.assign(length=n) for n in lengths], ignore_index=True)
    states = tables["states"]
    sizes = [fake.state_bytes(v, n) for v, n in zip(states["variant"], states["length"], strict=True)]
    return dataclasses.replace(records, **tables | {"states": states.assign(bytes=sizes)})


def at_length(name: str, kind: str, kl: float) -> dict[str, Any]:
    """The fields of an EvaluateRecord that are about length."""
    shares = [_beyond(name, kind, start) for start in BINS[:-1]]
    positions = [_bin(kl * f, start, stop) for f, start, stop in zip(shares, BINS, BINS[1:], strict=False)]
    mean = sum(b.kl_forward * b.tokens for b in positions) / sum(b.tokens for b in positions)
    holds = [b.stop for b in positions if b.kl_forward <= 2 * positions[0].kl_forward]
    whole = _ratio(mean)
    quality = LengthQuality(
        length=LENGTH, blocks=12, tokens=12 * (LENGTH - 1), kl_forward=mean, kl_forward_se=0.02 * mean,
        top1_agreement=math.exp(-0.5 * mean), ppl_ratio=whole, ppl_ratio_low=whole / 1.01, ppl_ratio_high=whole * 1.01,
        positions=positions, gaps=[_gap(name, kind, kl, *gap) for gap in GAPS],
        holds_to=None if len(holds) == 1 else holds[-1],
    )  # fmt: skip
    recall = [_recall(name, kind, task, size, kl) for task, sizes in SIZES.items() for size in sizes]
    return {"lengths": [quality], "recall": recall, "state_bytes": {LENGTH: fake.state_bytes(name, LENGTH)}}


def written(name: str, kind: str) -> list[GeneratedRecall]:
    """Copies and phone books that the student wrote: a tenth worse than what it recalls when forced."""
    return [
        GeneratedRecall(task=task, size=size, items=20, tokens=300, **_scores(task, 0.9 * _keeps(name, kind, size)))
        for task, size in (("copy", 256), ("phone_book", 16))
    ]


def _beyond(name: str, kind: str, distance: int) -> float:
    if distance < WINDOW:
        return 1.0
    return FAR.get(name, 1.0 if kind == "softmax" else 4.0)


def _keeps(name: str, kind: str, size: int) -> float:
    if size < WINDOW:
        return 1.0
    return KEEPS.get(name, 1.0 if kind == "softmax" else 0.1)


def _ratio(kl: float) -> float:
    return math.exp(0.8 * kl)


def _bin(kl: float, start: int, stop: int) -> PositionBin:
    ratio = _ratio(kl)
    return PositionBin(
        start=start, stop=stop, tokens=12 * (stop - start), blocks=12, kl_forward=kl, kl_forward_se=0.03 * kl,
        top1_agreement=math.exp(-0.5 * kl), top1_agreement_se=0.01, ce=4 + 0.8 * kl, teacher_ce=4.0,
        ppl_ratio=ratio, ppl_ratio_low=ratio / 1.02, ppl_ratio_high=ratio * 1.02,
    )  # fmt: skip


def _gap(name: str, kind: str, kl: float, low: int, high: int | None) -> GapRow:
    value = kl * _beyond(name, kind, low)
    return GapRow(
        low=low, high=high, tokens=900, kl_forward=value, kl_forward_se=0.05 * value, top1_agreement=0.5, ce=4.0,
        teacher_ce=3.9,
    )  # fmt: skip


def _recall(name: str, kind: str, task: str, size: int, kl: float) -> RecallRow:
    share = _keeps(name, kind, size)
    answer = kl * (2 - share) + 5 * (1 - share)
    return RecallRow(
        task=task, size=size, items=10, queries=QUERIES, tokens=4 * size, kl_answer=answer, kl_answer_se=0.05 * answer,
        nll=answer + 0.1, teacher_nll=0.1, **_scores(task, share),
    )  # fmt: skip


def _scores(task: str, share: float) -> dict[str, Any]:
    teacher = TEACHER[task]
    bounds = {"retention": share, "retention_low": max(share - 0.06, 0), "retention_high": min(share + 0.06, 1.1)}
    cannot = dict.fromkeys(bounds)
    return {"accuracy": share * teacher, "teacher_accuracy": teacher} | (bounds if teacher >= 0.9 else cannot)
