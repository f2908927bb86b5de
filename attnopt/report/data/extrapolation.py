"""Costs at lengths beyond those measured, from their growth."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd

from attnopt import statistics
from attnopt.report.data import summary
from attnopt.report.data.read import Records

REACH = 8
"""How many times the longest length measured an extrapolation may go."""
POWERS = {"prefill": (1, 2), "decode": (0, 1)}
"""Phase -> the powers of length that its time has; the state has those of decoding."""


class Basis(NamedTuple):
    """What is extrapolated from: the costs of one level at these lengths, rising."""

    level: str
    lengths: list[int]

    @property
    def longest(self) -> int:
        return self.lengths[-1]


def basis(records: Records) -> Basis | None:
    """The level with the longest lengths, then the most of them, among those measured at two or more."""
    every = ((level, summary.measured_lengths(records, level)) for level in summary.levels(records))
    found = [Basis(level, lengths) for level, lengths in every if len(lengths) > 1]
    return max(found, key=lambda b: (b.longest, len(b.lengths)), default=None)


def lengths(records: Records, wanted: Iterable[int]) -> list[int]:
    """Those wanted that can be extrapolated to: not measured, beyond the longest length and within reach."""
    found = basis(records)
    if found is None:
        return []
    measured = {n for level in summary.levels(records) for n in summary.measured_lengths(records, level)}
    return sorted({n for n in wanted if found.longest < n <= REACH * found.longest} - measured)


def extrapolated_cost(records: Records, length: int, resamples: int = 1000) -> pd.DataFrame:
    """As `summary.cost`, at one of `lengths`: 95 % intervals in place of quartiles, and no peaks of memory.

    Columns: prefill_ms, decode_ms, prefill_ms_ratio, decode_ms_ratio, each with .._low and .._high, bootstrapped
    from the raw samples; .._baseline; state with .._baseline and .._ratio; level.
    A variant that did not come out at the longest length is not there: what failed is not extrapolated.
    """
    found = basis(records)
    assert found is not None, "ask for one of `lengths`"
    assert length in lengths(records, [length]), length
    rows: dict[str, dict[str, Any]] = {}
    for phase in POWERS:
        table = summary.bench_rows(records, found.level, phase)
        for variant, group in table.groupby("variant", sort=False):
            if _whole(group, found):
                rows.setdefault(str(variant), {}).update(_row(group, phase, length, found, resamples))
    out = pd.DataFrame.from_dict({v: rows[v] for v in records.variants if v in rows}, orient="index")
    names = [f"{phase}_ms{part}" for phase in POWERS for part in ("", "_low", "_high", "_ratio", "_baseline")]
    names += ["state", "state_baseline", "state_ratio"]
    out = out.reindex(columns=[*out.columns, *(name for name in names if name not in out)])
    return out.assign(level=found.level)


def _whole(group: pd.DataFrame, found: Basis) -> bool:
    return len(group) > 1 and group["length"].max() == found.longest


def _row(group: pd.DataFrame, phase: str, length: int, found: Basis, resamples: int) -> dict[str, Any]:
    """One variant's time in a phase, with the state where it decodes; softmax's where that came out as far."""
    name, powers = f"{phase}_ms", POWERS[phase]
    own = _times(group, ("median", "samples"), length, powers, resamples, 0)
    row = {name: own[0]} | _interval(name, own[1])
    beside = group[group["baseline"].notna()]
    if _whole(beside, found):
        softmax = _times(beside, ("baseline", "baseline_samples"), length, powers, resamples, 1)
        row |= {f"{name}_baseline": softmax[0], f"{name}_ratio": own[0] / softmax[0]}
        row |= _interval(f"{name}_ratio", own[1] / softmax[1])
    if phase == "decode":
        row["state"] = _state(group, "state_bytes", length)
        if _whole(beside, found):
            row["state_baseline"] = _state(beside, "baseline_state", length)
            row["state_ratio"] = row["state"] / row["state_baseline"]
    return row


def _times(
    group: pd.DataFrame, keys: tuple[str, str], length: int, powers: tuple[int, int], resamples: int, seed: int
) -> tuple[float, Any]:
    """The extrapolated time and its bootstrap."""
    measured, medians, samples = (list(group[key]) for key in ("length", *keys))
    draws = statistics.extrapolations(measured, samples, length, powers, resamples, seed)
    return float(statistics.extrapolate(measured, medians, length, powers)), draws


def _interval(name: str, draws: Any) -> dict[str, float]:
    return dict(zip((f"{name}_low", f"{name}_high"), statistics.percentiles(draws), strict=True))


def _state(group: pd.DataFrame, key: str, length: int) -> float:
    """Bytes, on the line through the two longest lengths: exact once a window is full."""
    sizes = group[key].iloc[-2:]
    if sizes.nunique(dropna=False) == 1:
        return float(sizes.iloc[-1])
    return float(statistics.extrapolate(list(group["length"].iloc[-2:]), list(sizes), length, POWERS["decode"]))
