"""The picture that the page opens with: quality at a length against cost there, the recommended point named."""

from collections.abc import Iterable

import pandas as pd

from attnopt.report.context import ZERO, Context
from attnopt.report.data import at_length
from attnopt.report.parts import formats
from attnopt.report.parts.figures import Axis, Figure, Panel, Rule, Series, Style, View
from attnopt.report.questions import extrapolated
from attnopt.statistics import margin, pareto

COSTS = {
    "state": ("state", "state, KiB per sequence", 1024),
    "decode_ms": ("decoding time", "decoding, ms per token", 1),
    "prefill_ms": ("prefill time", "prefill, ms", 1),
}
ALIKE = 1.5
LINES = {False: ("window + sinks, untrained", "2 3"), True: ("window + sinks, trained", "6 3")}


def picture(context: Context, recommended: dict[int, str]) -> Figure | None:
    """A view for each of these lengths and each cost known there, the longest length first; None without a cost.

    Args:
        recommended: length to choose for -> the variant named there; empty where there is none.
    """
    views, frames = [], []
    for length in sorted(recommended, reverse=True):
        table = context.at(length).rename_axis("variant")
        for key in _order(table):
            if len(_drawn(table, key)):
                name = COSTS[key][0]
                where = f"at {formats.length(length)} tokens"
                panel = _panel(context, table, key, recommended[length])
                views.append(View(where, [panel], f"against {name}"))
        frames.append(table.assign(length=length, quality_length=context.quality_length(length)).reset_index())
    if not views:
        return None
    return Figure(
        name="pareto",
        title="Quality at length against cost",
        alt="KL to the teacher at the chosen length against state, decoding time or prefill time.",
        caption=f"KL on {_pieces(context, recommended)}, test split; down and left is better. "
        "Ring: recommended; grey line: what no other beats in both; bars: 95 % intervals. Controls are in the tables."
        f"{_unmeasured(context)}{_extrapolated(context)} {context.hardware}",
        views=views,
        frame=pd.concat(frames, ignore_index=True),
        command="dvc repro evaluate bench",
        columns=1,
        height=400,
        legend="below",
    )


def _order(table: pd.DataFrame) -> list[str]:
    """The state first, unless the budget has made it all but one."""
    state = table.loc[(table["group"] == at_length.WITHIN) & table["state"].gt(0), "state"]
    alike = len(state) > 1 and state.max() < ALIKE * state.min()
    return sorted(COSTS, key=lambda key: (key == "state") == alike)


def _panel(context: Context, table: pd.DataFrame, key: str, recommended: str) -> Panel:
    _, unit, scale = COSTS[key]
    rows = _drawn(table, key).assign(cost=lambda t: t[key] / scale)
    half = margin(rows["kl_se"].fillna(0))
    rows = rows.assign(low=(rows["kl"] - half).clip(lower=rows["kl"] / 10), high=rows["kl"] + half).sort_values("cost")
    front = rows[pareto(rows[["kl", "cost"]].to_numpy())]
    series = [Series("best for its cost", Style("front", "none"), list(front["cost"]), list(front["kl"]), points=False)]
    if key == "state":
        series += _windows(rows)
    if recommended in rows.index:
        at = rows.loc[[recommended]]
        style = Style(context.looks[recommended].colour, "ring")
        name = f"choose {context.name(recommended)}"
        series.append(Series(name, style, list(at["cost"]), list(at["kl"]), line=False, label=True))
    for variant, group in rows.groupby("variant", sort=False):
        notes = [_note(row) for row in group.to_dict("records")]
        bounds = {"low": group["low"], "high": group["high"], "notes": notes}
        label = variant != recommended
        series.append(context.series(variant, group["cost"], group["kl"], line=False, label=label, **bounds))
    return Panel("", Axis(unit, log=True), Axis("KL, nats per token", log=True), series, _rules(context, table, key))


def _drawn(table: pd.DataFrame, key: str) -> pd.DataFrame:
    """Those that a logarithmic axis can show, without controls, which are far off."""
    return table[table[key].gt(0) & (table["kl"] > ZERO) & (table["group"] != at_length.CONTROL)]


def _windows(rows: pd.DataFrame) -> list[Series]:
    """The lines of window + sinks through its points, where there are two or more."""
    windows = rows[rows["kind"] == at_length.WINDOW].sort_values("cost")
    found = []
    for trained, (name, dash) in LINES.items():
        own = windows[windows["trained"].gt(0) == trained]
        if own["cost"].nunique() > 1:
            style = Style("grey", "none", dash)
            found.append(Series(name, style, list(own["cost"]), list(own["kl"]), points=False))
    return found


def _rules(context: Context, table: pd.DataFrame, key: str) -> list[Rule]:
    scale = COSTS[key][2]
    known = (table["state"] / table["share"]) if key == "state" else table[f"{key}_baseline"]
    softmax = float(known[table["share"].gt(0)].median() if key == "state" else known.median()) / scale
    if softmax != softmax:
        return []
    rules = [Rule("x", softmax, "softmax")]
    if key == "state":
        rules.append(Rule("x", softmax * context.budget.share, f"{formats.fraction(context.budget.share)} of it"))
    return rules


def _note(row: dict[str, float]) -> str:
    """What the pointer tells of a point besides."""
    shown = [f"perplexity {formats.times(row['last_ratio'])} in the last bin"]
    if not formats.missing(row["copy"]):
        shown.append(f"copies over {row['copy_gap']:.0f} tokens: {formats.times(row['copy'])} the teacher")
    return "\n".join(shown)


def _pieces(context: Context, chosen: Iterable[int]) -> str:
    lengths = dict.fromkeys(context.quality_length(n) for n in chosen)
    return f"pieces of {formats.listing(map(formats.length, sorted(lengths)))} tokens"


def _unmeasured(context: Context) -> str:
    if not context.unmeasured:
        return ""
    return f" Not measured, and so not here: quality at {formats.listing(map(formats.length, context.unmeasured))}."


def _extrapolated(context: Context) -> str:
    """Says which costs are not measured."""
    shown = [formats.length(n) for n in context.extrapolated if n in context.chosen]
    if not context.basis or not shown:
        return ""
    return f" Costs at {formats.listing(shown)} are {extrapolated.said_basis(context.basis)}."
