"""Costs at lengths beyond those measured, from their growth; every place that shows one names what it rests on."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd

from attnopt import statistics as fits
from attnopt import statistics as stats
from attnopt.report.data import summary
from attnopt.report.data.read import Records
from attnopt.report.parts import formats as words

REACH = 8
"""How many times the longest length measured an extrapolation may go."""
POWERS = {"prefill": (1, 2), "decode": (0, 1)}
"""Phase -> the powers of length that its time has; the state has those of decoding."""
COLUMN = "extrapolated_from"


class Basis(NamedTuple):
    """What is extrapolated from."""

    level: str
    lengths: list[int]

    @property
    def longest(self) -> int:
        return self.lengths[-1]

    @property
    def words(self) -> str:
        return f"extrapolated from {words.listing(words.count(n) for n in self.lengths)}"


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


def cost(records: Records, length: int, resamples: int = 1000) -> pd.DataFrame:
    """As `summary.cost`, at one of `lengths`: 95 % intervals in place of quartiles, and no peaks of memory.

    Columns: prefill_ms, decode_ms, prefill_ms_ratio, decode_ms_ratio, each with .._low and .._high, bootstrapped
    from the raw samples; .._baseline; state with .._baseline and .._ratio; level; extrapolated_from, the lengths.
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
    return out.assign(level=found.level, **{COLUMN: words.listing(found.lengths)})


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
    draws = fits.extrapolations(measured, samples, length, powers, resamples, seed)
    return float(fits.extrapolate(measured, medians, length, powers)), draws


def _interval(name: str, draws: Any) -> dict[str, float]:
    return dict(zip((f"{name}_low", f"{name}_high"), stats.percentiles(draws), strict=True))


def _state(group: pd.DataFrame, key: str, length: int) -> float:
    """Bytes, on the line through the two longest lengths: exact once a window is full."""
    sizes = group[key].iloc[-2:]
    if sizes.nunique(dropna=False) == 1:
        return float(sizes.iloc[-1])
    return float(fits.extrapolate(list(group["length"].iloc[-2:]), list(sizes), length, POWERS["decode"]))


def limits(records: Records, reached: Iterable[int]) -> list[str]:
    """What an extrapolation assumes, and where that is known to fail."""
    found = basis(records)
    assert found is not None
    shown = words.listing(map(words.length, reached))
    out = [
        f"At {shown} tokens every cost is {found.words}: times as a + b n for a decoded token and a n + b n² for a "
        "prefill, a and b not negative, through the longest length measured; bytes on the line through the two "
        "longest. The intervals are of the samples' noise, not of these assumptions.",
        "A byte is taken to cost the same at every length. Softmax's decoding copies all keys and values for each "
        "token. The bench lets the allocator keep what is freed; where nothing does, each page of a large copy is paid "
        "for anew: in benchmarks/mechanisms.json 16 384 tokens are within 50 % of what 1 024 and 4 096 predict, but "
        "softmax's decoding takes more than twice that. Next to softmax a state that does not grow then decodes faster "
        "still.",
    ]
    return out + _steeper(records, found)


def _steeper(records: Records, found: Basis) -> list[str]:
    """Says so where softmax's decoding already grows faster than its work between the lengths measured."""
    rows = summary.bench_rows(records, found.level, "decode").groupby("length")["baseline"].median().dropna()
    if len(rows) < 2:
        return []
    short, long = (float(n) for n in rows.index[-2:])
    grown = float(rows[long] / rows[short])
    if grown <= 1.1 * long / short:
        return []
    return [
        f"In this run softmax's decoding takes {words.number(grown)} times as long at {words.count(long)} tokens as at "
        f"{words.count(short)}, more than its work grows: its extrapolated time is a lower bound."
    ]
