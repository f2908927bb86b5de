"""Which variant for which context length and memory: the Pareto fronts of KL against each cost."""

from typing import Any

import pandas as pd

from attnopt.report import stats, words
from attnopt.report.context import LEVELS, ZERO, Answer, Context, absent
from attnopt.report.figures import Axis, Figure, Panel, Rule, Series, Style, View
from attnopt.report.tables import Cell, Table, column

SLUG, QUESTION = "choose", "Which variant for which context length and memory?"
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
        kl = words.plus_minus(*context.kl(best))
        short = f"**{best}** is closest to the teacher (KL {kl}). Not from this run: its cost."
        return Answer(slug=SLUG, question=QUESTION, short=short)
    chosen = [choices(context, n) for n in lengths]
    return Answer(
        slug=SLUG,
        question=QUESTION,
        short=_short(chosen[-1].frame, _where(context, lengths[-1])),
        sentences=_sentences(context, lengths[-1]),
        limits=_limits(context, lengths[-1]),
        figures=[_figure(context, lengths)],
        tables=[*chosen, *(_costs(context, n) for n in lengths)],
    )


def eligible(context: Context, length: int) -> pd.DataFrame:
    """Candidates measured at a length, without those no closer to the teacher than no attention at all."""
    table = context.ranked.join(context.costs[length], how="inner")
    floor = context.quality.loc[context.quality["kind"] == "none", "kl"].min()
    return table[~(table["kl"] >= floor)]


def choices(context: Context, length: int) -> Table:
    """One row per need at a length, with the variant that meets it best."""
    table = eligible(context, length)
    rows = [_row("the closest output", context.ranked.head(1).join(context.costs[length]))]
    for key, need in (("decode_ms", "the fastest decoding"), ("prefill_ms", "the fastest prefill")):
        fastest = table[table[key] == table[key].min()]
        equal = table[table[f"{key}_q1"] <= fastest[f"{key}_q3"].max()]
        rows.append(_row(need, equal.head(1), [str(v) for v in equal.index[1:]]))
    rows.append(_row("the smallest state", table.sort_values(["state", "kl"]).dropna(subset=["state"]).head(1)))
    lean = table[(table["decode_ms_ratio"] < 1) & (table["state_ratio"] <= 0.5)]
    rows.append(_row("the closest among those that decode faster than softmax in half its state", lean.head(1)))
    columns: dict[str, Cell] = {
        "if you need": column("need"),
        "choose": lambda r: r["variant"] or "none of these",
        "KL": lambda r: words.plus_minus(r["kl"], r["kl_se"]),
        "decoding over softmax's": column("decode_ms_ratio", words.times),
        "prefill over softmax's": column("prefill_ms_ratio", words.times),
        "state": column("state", words.size),
        "state over softmax's": column("state_ratio", words.times),
        "as fast within quartiles": column("equal"),
    }
    return Table(
        name=f"choose_{length}",
        title=f"Choose at {_where(context, length)}",
        columns=columns,
        frame=pd.DataFrame(rows).assign(length=length),
        command="dvc repro evaluate bench",
        note="Of variants equally fast within their quartiles, the one with the lowest KL.",
        text={"choose"},
        wide={"if you need", "as fast within quartiles"},
    )


def _row(need: str, best: pd.DataFrame, equal: list[str] | None = None) -> dict[str, Any]:
    keys = ["kl", "kl_se", "decode_ms_ratio", "prefill_ms_ratio", "state", "state_ratio"]
    values = best.iloc[0][keys].to_dict() if len(best) else dict.fromkeys(keys)
    return {"need": need, "variant": str(best.index[0]) if len(best) else "", "equal": ", ".join(equal or [])} | values


def _short(frame: pd.DataFrame, where: str) -> str:
    needs: dict[str, list[str]] = {}
    for row in frame.to_dict("records"):
        needs.setdefault(f"**{row['variant']}**" if row["variant"] else "no variant", []).append(row["need"])
    return f"At {where}: {'; '.join(f'{variant} for {words.listing(wanted)}' for variant, wanted in needs.items())}."


def _where(context: Context, length: int) -> str:
    level = eligible(context, length)["level"].iloc[0]
    return words.length(length) + (" tokens" if level == "model" else f" tokens, {LEVELS[level]}")


def _sentences(context: Context, length: int) -> list[str]:
    table = eligible(context, length)
    axes = [key for key in ("kl", *COSTS) if table[key].notna().all()]
    front = table.index[stats.pareto(table[axes].to_numpy())]
    shown = words.listing(["KL", *(COSTS[key][0] for key in axes[1:])])
    names = words.listing(f"**{v}**" for v in front)
    out = [f"Pareto front over {shown} at {_where(context, length)}: {names}."]
    if len(beaten := table.index.difference(front, sort=False)):
        out.append(f"Off it, since some one variant is at least as good on all of these: {words.listing(beaten)}.")
    timed = table["decode_ms_ratio"].dropna()
    faster = list(timed.index[timed < 1])
    if len(timed):
        named = f": {words.listing(faster)}" if faster else ""
        out.append(f"{len(faster)} of {words.plural(len(timed), 'variant')} decode faster than softmax there{named}.")
    return out


def _limits(context: Context, length: int) -> list[str]:
    out, block = [], context.records.corpus.get("block")
    if block and length > block:
        out.append(f"KL is measured on blocks of {block} tokens; at {words.length(length)} only the cost is measured.")
    if wanted := [words.length(n) for n in context.params.lengths if n not in context.lengths]:
        out.append(f"Asked for and not measured: {words.listing(wanted)} tokens.")
    if len(left_out := context.ranked.index.difference(eligible(context, length).index, sort=False)):
        out.append(f"Left out, not measured there or no closer than no attention at all: {words.listing(left_out)}.")
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
        f"leaking variants are never on it. Bars: 95 % intervals. {context.hardware}",
        views=views[::-1],
        frame=pd.concat(frames, ignore_index=True),
        command="dvc repro evaluate bench",
        height=300,
    )


def _front(context: Context, table: pd.DataFrame, key: str) -> Panel:
    title, unit, scale = COSTS[key]
    rows = table[table[key].notna() & (table["kl"] > ZERO)].assign(cost=lambda t: t[key] / scale)
    half = 1.96 * rows["kl_se"]
    rows = rows.assign(low=rows["kl"] - half, high=rows["kl"] + half).sort_values("cost")
    ranked = rows[rows["role"] == "candidate"]
    front = ranked[stats.pareto(ranked[["kl", "cost"]].to_numpy())]
    series = [Series("Pareto front", Style("front", "none"), list(front["cost"]), list(front["kl"]), points=False)]
    for variant, group in rows.groupby("variant", sort=False):
        points = context.series(variant, group["cost"], group["kl"], low=group["low"], high=group["high"])
        points.line, points.label = False, True
        series.append(points)
    softmax = table[f"{key}_baseline"].median() / scale
    rules = [Rule("x", float(softmax), "softmax")] if softmax == softmax else []
    return Panel(title.capitalize(), Axis(unit, log=True), Axis("KL, nats per token", log=True), series, rules)


def _costs(context: Context, length: int) -> Table:
    frame = context.costs[length].reset_index(names="variant")
    columns: dict[str, Cell] = {
        "variant": column("variant", context.name),
        "prefill, ms": lambda r: _quartiles(r, "prefill_ms"),
        "over softmax's": column("prefill_ms_ratio", words.times),
        "decoding, ms per token": lambda r: _quartiles(r, "decode_ms"),
        "over softmax's ": column("decode_ms_ratio", words.times),
        "state": column("state", words.size),
        "over softmax's  ": column("state_ratio", words.times),
        "peak memory, MiB": column("peak_mib", words.number),
    }
    return Table(
        name=f"costs_{length}",
        title=f"Cost at {_where(context, length)}",
        columns=columns,
        frame=frame,
        command="dvc repro bench",
        note=f"Medians with quartiles; softmax is SDPA, interleaved in the same run. {context.hardware}",
        text={"variant"},
    )


def _quartiles(row: Any, key: str) -> str:
    median, low, high = (words.number(row[key + suffix]) for suffix in ("", "_q1", "_q3"))
    return median if words.missing(row[key]) else f"{median} [{low}, {high}]"
