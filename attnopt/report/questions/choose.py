"""Which variant for which context length and memory: the Pareto fronts of KL against each cost."""

from collections.abc import Callable
from typing import Any

import pandas as pd

from attnopt.report.context import EXTRAPOLATED, LEVELS, ZERO, Answer, Context, absent
from attnopt.report.data import extrapolation
from attnopt.report.parts import formats
from attnopt.report.parts.figures import Axis, Figure, Panel, Rule, Series, Style, View
from attnopt.report.parts.tables import Cell, Column, Table, column, variant_column
from attnopt.report.questions import extrapolated
from attnopt.statistics import margin, pareto

SLUG, QUESTION = "choose", "Which variant for which context length and memory?"
LEAN = "the closest among those that decode faster than softmax in half its state"
RATIOS = {"decode_ms_ratio": "decoding time", "prefill_ms_ratio": "prefill time", "state_ratio": "state"}
NEEDS = {
    "the closest output": {"decode_ms_ratio": "decoding", "state_ratio": "state"},
    "the fastest decoding": {"decode_ms_ratio": "decoding"},
    "the fastest prefill": {"prefill_ms_ratio": "prefill"},
    "the smallest state": {"state_ratio": "state"},
}
"""Need -> what of softmax's costs the short answer says of the variant that meets it best."""
COSTS = {
    "decode_ms": ("decoding", "ms per token", 1),
    "prefill_ms": ("prefill", "ms", 1),
    "state": ("state", "KiB per sequence", 1024),
}


def answer(context: Context) -> Answer:
    if not len(context.ranked):
        return absent(SLUG, QUESTION, "no variant that competes was evaluated")
    best = str(context.ranked.index[0])
    lengths = [n for n in context.lengths if len(eligible(context, n))]
    if not lengths:
        kl = formats.estimate(context.kl(best))
        short = f"**{best}** is closest to the teacher (KL {kl}). Not from this run: its cost."
        return Answer(slug=SLUG, question=QUESTION, short=short)
    chosen = [choices(context, n) for n in lengths[::-1]]
    return Answer(
        slug=SLUG,
        question=QUESTION,
        short=_short(chosen[0].frame, _where(context, lengths[-1]), _blocks(context, lengths[-1])),
        sentences=_sentences(context, lengths[-1]),
        limits=_limits(context, lengths[-1]),
        figures=[_figure(context, lengths)],
        tables=[*chosen, *(_costs(context, n) for n in lengths[::-1])],
    )


def eligible(context: Context, length: int) -> pd.DataFrame:
    """Candidates with a cost at a length, without those no closer to the teacher than no attention at all."""
    table = context.ranked.join(context.costs[length], how="inner")
    floor = context.quality.loc[context.quality["kind"] == "none", "kl"].min()
    return table[~(table["kl"] >= floor)]


def choices(context: Context, length: int) -> Table:
    """One row per need at a length, with the variant that meets it best."""
    table = eligible(context, length)
    low, high, spread = _spread(context, length)
    rows = [_row("the closest output", context.ranked.head(1).join(context.costs[length]))]
    for key, need in (("decode_ms", "the fastest decoding"), ("prefill_ms", "the fastest prefill")):
        fastest = table[table[key] == table[key].min()]
        equal = table[table[key + low] <= fastest[key + high].max()]
        rows.append(_row(need, equal.head(1), [str(v) for v in equal.index[1:]]))
    rows.append(_row("the smallest state", table.sort_values(["state", "kl"]).dropna(subset=["state"]).head(1)))
    lean = table[(table["decode_ms_ratio"] < 1) & (table["state_ratio"] <= 0.5)]
    rows.append(_row(LEAN, lean.head(1)))
    columns = [
        column("if you need", "need", kind="wide"),
        Column("choose", lambda r: r["variant"] or "none of these", "text", swatch=True),
        Column("KL", lambda r: formats.plus_minus(r["kl"], r["kl_se"])),
        column("decoding over softmax's", "decode_ms_ratio", formats.times),
        column("prefill over softmax's", "prefill_ms_ratio", formats.times),
        column("state", "state", formats.size),
        column("state over softmax's", "state_ratio", formats.times),
        column(f"as fast within {spread}", "equal", kind="wide"),
    ]
    return Table(
        name=f"choose_{length}",
        title=f"Choose at {_where(context, length)}",
        columns=columns,
        frame=_marked(context, pd.DataFrame(rows), length),
        command="dvc repro evaluate bench",
        note=f"Of variants equally fast within their {spread}, the one with the lowest KL.",
    )


def _row(need: str, best: pd.DataFrame, equal: list[str] | None = None) -> dict[str, Any]:
    keys = ["kl", "kl_se", "decode_ms_ratio", "prefill_ms_ratio", "state", "state_ratio"]
    values = best.iloc[0][keys].to_dict() if len(best) else dict.fromkeys(keys)
    return {"need": need, "variant": str(best.index[0]) if len(best) else "", "equal": ", ".join(equal or [])} | values


def _short(frame: pd.DataFrame, where: str, blocks: str) -> str:
    """The variant that most would take and why, then those for other needs with the numbers that speak for them."""
    rows = {row["need"]: row for row in frame.to_dict("records")}
    lean = rows.pop(LEAN)
    start = f"At {where}, no variant decodes faster than softmax in half its state."
    if lean["variant"]:
        costs = [f"{formats.times(lean[k])} its {cost}" for k, cost in RATIOS.items() if not formats.missing(lean[k])]
        costs[0] = costs[0].replace("its", "softmax's")
        start = (
            f"At {where}, choose **{lean['variant']}**: of those that decode faster than softmax in half its state it "
            f"is the closest to the teacher (KL {formats.plus_minus(lean['kl'], lean['kl_se'])}{blocks}), "
            f"with {formats.listing(costs)}."
        )
    needs: dict[str, list[str]] = {}
    for need, row in rows.items():
        needs.setdefault(row["variant"], []).append(need)
    return f"{start} For other needs: {'; '.join(_named(v, wanted, rows[wanted[0]]) for v, wanted in needs.items())}."


def _named(variant: str, needs: list[str], row: dict[str, Any]) -> str:
    """A variant, what it is best for and the numbers that this is about."""
    if not variant:
        return f"no variant for {formats.listing(needs)}"
    shown = {key: name for need in needs for key, name in NEEDS[need].items() if not formats.missing(row[key])}
    numbers = [f"KL {formats.plus_minus(row['kl'], row['kl_se'])}"]
    numbers += [f"{name} {formats.times(row[key])}" for key, name in shown.items()]
    return f"**{variant}** for {formats.listing(needs)} ({', '.join(numbers)})"


def _blocks(context: Context, length: int) -> str:
    """What the KL is of, where that is not this length."""
    block = context.records.corpus.block
    return f" on blocks of {block} tokens" if length > block else ""


def _where(context: Context, length: int) -> str:
    level = eligible(context, length)["level"].iloc[0]
    where = formats.length(length) + (" tokens" if level == "model" else f" tokens, {LEVELS[level]}")
    if context.basis and length in context.extrapolated:
        return f"{where}, {extrapolated.said_basis(context.basis)}"
    return where


def _spread(context: Context, length: int) -> tuple[str, str, str]:
    """The suffixes of a time's bounds and what they are."""
    return ("_low", "_high", "intervals") if length in context.extrapolated else ("_q1", "_q3", "quartiles")


def _marked(context: Context, frame: pd.DataFrame, length: int) -> pd.DataFrame:
    """With the length, and in a column what it is extrapolated from where it is."""
    frame = frame.assign(length=length)
    if length not in context.extrapolated or context.basis is None:
        return frame
    return frame.assign(**{EXTRAPOLATED: formats.listing(context.basis.lengths)})


def _sentences(context: Context, length: int) -> list[str]:
    table = eligible(context, length)
    axes = [key for key in ("kl", *COSTS) if table[key].notna().all()]
    front = table.index[pareto(table[axes].to_numpy())]
    shown = formats.listing(["KL", *(COSTS[key][0] for key in axes[1:])])
    names = formats.listing(f"**{v}**" for v in front)
    out = [f"Pareto front over {shown} at {_where(context, length)}: {names}."]
    if len(beaten := table.index.difference(front, sort=False)):
        out.append(f"Off it, since some one variant is at least as good on all of these: {formats.listing(beaten)}.")
    timed = table["decode_ms_ratio"].dropna()
    there = "there, extrapolated" if length in context.extrapolated else "there"
    faster = list(timed.index[timed < 1])
    if len(timed):
        named = f": {formats.listing(faster)}" if faster else ""
        out.append(
            f"{len(faster)} of {formats.plural(len(timed), 'variant')} decode faster than softmax {there}{named}."
        )
    return out


def _limits(context: Context, length: int) -> list[str]:
    out, block = [], context.records.corpus.block
    known = "extrapolated" if length in context.extrapolated else "measured"
    if length > block:
        out.append(f"KL is measured on blocks of {block} tokens; at {formats.length(length)} only the cost is {known}.")
    if context.extrapolated:
        out += extrapolated.limits(context.records, context.extrapolated)
    out += _unanswered(context)
    if len(left_out := context.ranked.index.difference(eligible(context, length).index, sort=False)):
        out.append(f"Left out, not {known} there or no closer than no attention at all: {formats.listing(left_out)}.")
    return out


def _unanswered(context: Context) -> list[str]:
    """The lengths asked for that the page does not have."""
    wanted = [n for n in context.params.lengths if n not in context.lengths]
    far = [n for n in wanted if context.basis and n > extrapolation.REACH * context.basis.longest]
    out = []
    if near := [formats.length(n) for n in wanted if n not in far]:
        out.append(f"Asked for and not measured: {formats.listing(near)} tokens.")
    if far and context.basis:
        out.append(
            f"Asked for and neither measured nor extrapolated: {formats.listing(map(formats.length, far))} tokens, "
            f"more than {extrapolation.REACH} times the longest length measured, "
            f"{formats.count(context.basis.longest)}."
        )
    return out


def _figure(context: Context, lengths: list[int]) -> Figure:
    views, frames = [], []
    for length in lengths:
        table = context.quality.join(context.costs[length], how="inner")
        panels = [_front(context, table, key) for key in COSTS if table[key].notna().any()]
        views.append(View(_where(context, length), panels))
        frames.append(table.assign(length=length).reset_index(names="variant"))
    return Figure(
        name="pareto",
        title="Quality against cost",
        alt="KL against decoding time, prefill time and state size, with the Pareto front of each.",
        caption="Down and left is better. The line joins the variants that no other beats in both; controls and "
        f"leaking variants are never on it. Bars: 95 % intervals.{_extrapolated(context)} {context.hardware}",
        views=views[::-1],
        frame=pd.concat(frames, ignore_index=True),
        command="dvc repro evaluate bench",
        height=300,
    )


def _front(context: Context, table: pd.DataFrame, key: str) -> Panel:
    title, unit, scale = COSTS[key]
    rows = table[table[key].notna() & (table["kl"] > ZERO)].assign(cost=lambda t: t[key] / scale)
    half = margin(rows["kl_se"])
    rows = rows.assign(low=rows["kl"] - half, high=rows["kl"] + half).sort_values("cost")
    ranked = rows[rows["role"] == "candidate"]
    front = ranked[pareto(ranked[["kl", "cost"]].to_numpy())]
    series = [Series("Pareto front", Style("front", "none"), list(front["cost"]), list(front["kl"]), points=False)]
    for variant, group in rows.groupby("variant", sort=False):
        points = context.series(variant, group["cost"], group["kl"], low=group["low"], high=group["high"])
        points.line, points.label = False, True
        series.append(points)
    softmax = table[f"{key}_baseline"].median() / scale
    rules = [Rule("x", float(softmax), "softmax")] if softmax == softmax else []
    return Panel(title.capitalize(), Axis(unit, log=True), Axis("KL, nats per token", log=True), series, rules)


def _extrapolated(context: Context) -> str:
    """Says which costs of a figure are not measured."""
    shown = formats.listing(formats.length(n) for n in context.extrapolated)
    if not context.basis or not context.extrapolated:
        return ""
    return f" Costs at {shown} are {extrapolated.said_basis(context.basis)}."


def _costs(context: Context, length: int) -> Table:
    bounds = _spread(context, length)[:2]
    measured = length not in context.extrapolated
    columns = [
        variant_column(context.name),
        Column("prefill, ms", lambda r: _bounded(r, "prefill_ms", bounds)),
        Column("over softmax's", _ratio("prefill_ms_ratio", measured)),
        Column("decoding, ms per token", lambda r: _bounded(r, "decode_ms", bounds)),
        Column("over softmax's", _ratio("decode_ms_ratio", measured)),
        column("state", "state", formats.size),
        column("over softmax's", "state_ratio", formats.times),
        *([column("peak memory, MiB", "peak_mib", formats.number)] if measured else []),
    ]
    shown = "Medians with quartiles" if measured else "With 95 % intervals from resampled raw samples"
    return Table(
        name=f"costs_{length}",
        title=f"Cost at {_where(context, length)}",
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


def _bounded(row: Any, key: str, bounds: tuple[str, str], show: Callable[[Any], str] = formats.number) -> str:
    if formats.missing(row[key]):
        return formats.MISSING
    low, high = (show(row[key + bound]).removesuffix("×") for bound in bounds)
    return f"{show(row[key])} [{low}, {high}]"
