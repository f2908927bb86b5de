"""The tables behind the choice: a variant per need where quality was measured, and costs at every length."""

from collections.abc import Callable
from typing import Any

import pandas as pd

from attnopt.report.context import EXTRAPOLATED, LEVELS, Context
from attnopt.report.data import at_length
from attnopt.report.parts import formats
from attnopt.report.parts.tables import Cell, Column, Table, column, variant_column
from attnopt.report.questions import extrapolated

CLOSEST = "the closest output, any state"
RECALL = "the best recall"
KEYS = ["kl", "kl_se", "last_ratio", "copy", "decode_ms_ratio", "prefill_ms_ratio", "state", "share"]


def eligible(context: Context, length: int) -> pd.DataFrame:
    """Those to choose from at a length: no control but windows, none no closer to the teacher than no attention."""
    table = context.at(length)
    floor = table.loc[table["kind"] == "none", "kl"].min()
    return at_length.competing(table[~(table["kl"] >= floor)])


def choices(context: Context, length: int, recommended: str) -> Table:
    """One row per need at a length, with the variant that meets it best; first what the page recommends."""
    table = eligible(context, length)
    low, high, spread = bounds(context, length)
    rows = [_row(f"quality with {context.within}", table[table.index == recommended])]
    rows.append(_row(CLOSEST, table.head(1)))
    rows.append(_row(RECALL, table.sort_values("recall").dropna(subset=["recall"]).head(1)))
    for key, need in (("decode_ms", "the fastest decoding"), ("prefill_ms", "the fastest prefill")):
        timed = table.dropna(subset=[key])
        if len(timed):
            fastest = timed[timed[key] == timed[key].min()]
            equal = timed[timed[key + low] <= fastest[key + high].max()]
            rows.append(_row(need, equal.head(1), [str(v) for v in equal.index[1:]]))
    rows.append(_row("the smallest state", table.sort_values(["state", "kl"]).dropna(subset=["state"]).head(1)))
    at = formats.length(context.quality_length(length))
    columns = [
        column("if you need", "need", kind="wide"),
        Column("choose", lambda r: r["variant"] or "none of these", "text", swatch=True),
        Column(f"KL at {at}", lambda r: formats.plus_minus(r["kl"], r["kl_se"])),
        column("perplexity over the teacher’s, last bin", "last_ratio", formats.times),
        column("copies, over the teacher", "copy", formats.times),
        column("decoding over softmax’s", "decode_ms_ratio", formats.times),
        column("prefill over softmax’s", "prefill_ms_ratio", formats.times),
        column("state", "state", formats.size),
        column("over softmax’s", "share", formats.times),
        column(f"as fast within {spread}", "equal", kind="wide"),
    ]
    return Table(
        name=f"choose_{length}",
        title=f"Choose at {where(context, length)}",
        columns=columns,
        frame=_marked(context, pd.DataFrame(rows).assign(quality_length=context.quality_length(length)), length),
        command="dvc repro evaluate bench",
        note=f"Quality on pieces of {at} tokens. Of variants equally fast within their {spread}, the one with the "
        "lowest KL.",
    )


def _row(need: str, best: pd.DataFrame, equal: list[str] | None = None) -> dict[str, Any]:
    values = best.iloc[0][KEYS].to_dict() if len(best) else dict.fromkeys(KEYS)
    return {"need": need, "variant": str(best.index[0]) if len(best) else "", "equal": ", ".join(equal or [])} | values


def where(context: Context, length: int) -> str:
    """A length in words, with the level of its costs and what they are extrapolated from."""
    costs = context.costs.get(length)
    level = costs["level"].iloc[0] if costs is not None and len(costs) else "model"
    shown = formats.length(length) + (" tokens" if level == "model" else f" tokens, {LEVELS[level]}")
    if context.basis and length in context.extrapolated:
        return f"{shown}, {extrapolated.said_basis(context.basis)}"
    return shown


def bounds(context: Context, length: int) -> tuple[str, str, str]:
    """The suffixes of a time's bounds and what they are."""
    return ("_low", "_high", "intervals") if length in context.extrapolated else ("_q1", "_q3", "quartiles")


def _marked(context: Context, frame: pd.DataFrame, length: int) -> pd.DataFrame:
    """With the length, and in a column what it is extrapolated from where it is."""
    frame = frame.assign(length=length)
    if length not in context.extrapolated or context.basis is None:
        return frame
    return frame.assign(**{EXTRAPOLATED: formats.listing(context.basis.lengths)})


def costs(context: Context, length: int) -> Table:
    """What every variant costs at a length, and no quality beside it."""
    ends = bounds(context, length)[:2]
    measured = length not in context.extrapolated
    columns = [
        variant_column(context.name),
        Column("prefill, ms", lambda r: _bounded(r, "prefill_ms", ends)),
        Column("over softmax's", _ratio("prefill_ms_ratio", measured)),
        Column("decoding, ms per token", lambda r: _bounded(r, "decode_ms", ends)),
        Column("over softmax's", _ratio("decode_ms_ratio", measured)),
        column("state", "state", formats.size),
        column("over softmax's", "state_ratio", formats.times),
        *([column("peak memory, MiB", "peak_mib", formats.number)] if measured else []),
    ]
    shown = "Medians with quartiles" if measured else "With 95 % intervals from resampled raw samples"
    return Table(
        name=f"costs_{length}",
        title=f"Cost at {where(context, length)}",
        columns=columns,
        frame=context.costs[length].reset_index(names="variant"),
        command="dvc repro bench",
        note=f"{shown}; softmax is SDPA, interleaved in the same run. {context.hardware}",
    )


def _ratio(key: str, measured: bool) -> Cell:
    """A quotient over softmax's time, with its interval where it is extrapolated and so has one."""
    if measured:
        return lambda row: formats.times(row[key])
    return lambda row: _bounded(row, key, ("_low", "_high"), formats.times)


def _bounded(row: Any, key: str, ends: tuple[str, str], show: Callable[[Any], str] = formats.number) -> str:
    if formats.missing(row[key]):
        return formats.MISSING
    low, high = (show(row[key + end]).removesuffix("×") for end in ends)
    return f"{show(row[key])} [{low}, {high}]"
