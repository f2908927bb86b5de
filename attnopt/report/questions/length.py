"""Does quality hold at length: perplexity ratio by position in long documents, KL by recall gap."""

from typing import Any

import pandas as pd

from attnopt.report.context import ZERO, Answer, Context, absent
from attnopt.report.data import at_length, summary
from attnopt.report.parts import formats
from attnopt.report.parts.figures import Axis, Figure, Panel, Rule, View, ticks
from attnopt.report.parts.tables import Column, Table, column, variant_column
from attnopt.statistics import margin

SLUG, QUESTION = "length", "Does quality hold at length?"
FIRST_TIME = "first time"


def answer(context: Context) -> Answer:
    measured = sorted(int(n) for n in context.records.lengths["length"].unique())
    longest = measured[-1] if measured else 0
    competing = at_length.competing(at_length.quality(context.records, longest)) if measured else []
    if not len(competing):
        return absent(SLUG, QUESTION, "quality at length was measured of no variant that competes")
    return Answer(
        slug=SLUG,
        question=QUESTION,
        short=_short(context, competing, longest),
        sentences=_sentences(context, competing, longest),
        limits=_limits(context, longest),
        figures=[_positions(context, measured), *_gaps(context, measured)],
        tables=[quality_table(context, n) for n in measured[::-1]],
    )


def _short(context: Context, table: pd.DataFrame, length: int) -> str:
    """The best of each group in the last bin, and how many hold to the end."""
    parts = []
    for group, where in ((at_length.WITHIN, f"with {context.within}"), (at_length.BEYOND, "with more state")):
        rows = table[(table["group"] == group) & table["last_ratio"].notna()].sort_values("last_ratio")
        if len(rows):
            parts.append(f"**{rows.index[0]}** {where} ({_ratio(rows.iloc[0])})")
    row = table.iloc[0]
    span = f"{formats.length(row['last_start'])} to {formats.length(row['last_stop'])}"
    holding = int((table["holds_to"] >= length - 1).sum())
    return (
        f"At positions {span} of {formats.length(length)} the perplexity over the teacher’s is lowest for "
        f"{formats.listing(parts)}; KL stays within twice that of the first tokens to the end for {holding} of "
        f"{len(table)} variants."
    )


def _ratio(row: Any) -> str:
    low, high = at_length.interval_of(row, "last_ratio")
    known = "" if formats.missing(low) else f" {formats.interval(formats.times(low), formats.times(high))}"
    return f"{formats.times(row['last_ratio'])}{known}"


def _sentences(context: Context, table: pd.DataFrame, length: int) -> list[str]:
    out = []
    rows = table.sort_values("holds_to", ascending=False, kind="stable")
    held = [f"{v} to {formats.length(n)}" for v, n in rows["holds_to"].dropna().items()]
    if held:
        out.append(f"KL stays within twice that of the first bin: {formats.listing(held)} tokens.")
    if len(never := rows.index[rows["holds_to"].isna()]):
        out.append(f"Not beyond the first bin: {formats.listing(never)}.")
    if len(worse := table.index[table["last_ratio"] > table["ppl_ratio"]]):
        out.append(f"Worse in the last bin than over all of the piece: {formats.listing(worse)}.")
    return out + _far(context, table, length)


def _far(context: Context, table: pd.DataFrame, length: int) -> list[str]:
    """Who loses least where the predicted pair last stood farthest back."""
    rows = _gap_rows(context, length)
    rows = rows[rows["variant"].isin(table.index) & (rows["low"] > 0)]
    far = rows[rows["low"] == rows["low"].max()].sort_values("kl_forward")
    if not len(far):
        return []
    best, worst = far.iloc[0], far.iloc[-1]
    shown = [formats.plus_minus(row["kl_forward"], row["kl_forward_se"]) for row in (best, worst)]
    return [
        f"Where the predicted pair last stood {_span(best)} tokens back, KL is lowest for **{best['variant']}** "
        f"({shown[0]}) and highest for {worst['variant']} ({shown[1]})."
    ]


def _limits(context: Context, length: int) -> list[str]:
    rows = context.records.lengths[context.records.lengths["length"] == length]
    return [
        f"{formats.plural(int(rows['blocks'].median()), 'contiguous piece')} of {formats.length(length)} tokens of "
        "single documents of the test split, never packed; errors and 95 % intervals are over these pieces, with "
        "several seeds the mean of the runs’ intervals.",
    ]


def quality_table(context: Context, length: int) -> Table:
    """Quality at a length, grouped by budget."""
    frame = at_length.quality(context.records, length).reset_index(names="variant")
    frame = frame.assign(shown_group=context.groups(frame))
    span = _last_span(frame)
    return Table(
        name=f"length_{length}",
        title=f"Quality on pieces of {formats.length(length)} tokens",
        columns=[
            variant_column(context.name),
            Column("KL", lambda r: formats.plus_minus(r["kl"], r["kl_se"])),
            column("top-1 agrees", "top1", formats.percent),
            Column("perplexity over the teacher’s", lambda r: _interval(r, "ppl_ratio")),
            Column(f"the same at {span}", lambda r: _interval(r, "last_ratio")),
            Column("KL within twice the first bin’s to", _holds),
            column("state", "state", formats.size),
            column("over softmax’s", "share", formats.times),
        ],
        frame=frame,
        command="dvc repro evaluate",
        group="shown_group",
        note="The test split; ± is one standard error over documents and seeds, in brackets 95 % intervals.",
    )


def _last_span(frame: pd.DataFrame) -> str:
    start, stop = frame["last_start"].median(), frame["last_stop"].median()
    return f"{formats.length(start)} to {formats.length(stop)}" if start == start else "the end"


def _interval(row: Any, key: str) -> str:
    low, high = at_length.interval_of(row, key)
    if formats.missing(row[key]) or formats.missing(low):
        return formats.times(row[key])
    return f"{formats.times(row[key])} {formats.interval(low, high)}"


def _holds(row: Any) -> str:
    return formats.MISSING if formats.missing(row["holds_to"]) else formats.length(row["holds_to"])


def _positions(context: Context, measured: list[int]) -> Figure:
    table = context.records.bins
    keys = ["ppl_ratio", "ppl_ratio_low", "ppl_ratio_high", "kl_forward"]
    means = table.groupby(["variant", "length", "start", "stop"], sort=False)[keys].mean().reset_index()
    shown = {v for n in measured for v in at_length.competing(at_length.quality(context.records, n)).index}
    means = means[means["variant"].isin(shown)]
    means = means.assign(middle=(means["start"].clip(lower=1) * means["stop"]) ** 0.5)
    return Figure(
        name="positions_at_length",
        title="Perplexity over the teacher’s by position",
        alt="Perplexity over the teacher's of every variant against the position in a long document.",
        caption="The test split, positions in bins that double; bands: 95 % intervals over documents. At 1 a variant "
        "predicts as well as the teacher does. Controls are in the table.",
        views=[
            View(f"pieces of {formats.length(n)} tokens", [_position_panel(context, means[means["length"] == n])])
            for n in measured[::-1]
        ],
        frame=table.drop(columns=["kind", "control"]),
        command="dvc repro evaluate",
        columns=1,
        height=340,
    )


def _position_panel(context: Context, rows: pd.DataFrame) -> Panel:
    series = [
        context.series(v, t["middle"], t["ppl_ratio"], low=t["ppl_ratio_low"], high=t["ppl_ratio_high"])
        for v, t in rows.sort_values("start").groupby("variant", sort=False)
    ]
    x = Axis("position, tokens", log=True, ticks=ticks(rows["stop"]))
    return Panel("", x, Axis("perplexity over the teacher’s", log=True), series, [Rule("y", 1.0, "the teacher")])


def _gap_rows(context: Context, length: int) -> pd.DataFrame:
    """KL by distance to the last occurrence: means over seeds."""
    rows = context.records.gaps[context.records.gaps["length"] == length]
    keys = ["variant", "low"]
    high = rows.groupby(keys, sort=False)["high"].mean().reset_index()
    return summary.pooled(rows, keys, {"kl_forward": "kl_forward_se"}).merge(high, on=keys)


def _span(row: Any) -> str:
    if row["low"] == 0:
        return FIRST_TIME
    low = formats.length(row["low"])
    return f"{low} or more" if formats.missing(row["high"]) else f"{low} to {formats.length(row['high'])}"


def _gaps(context: Context, measured: list[int]) -> list[Figure]:
    views, frames = [], []
    for length in measured[::-1]:
        rows = _gap_rows(context, length)
        rows = rows[(rows["low"] > 0) & (rows["kl_forward"] > ZERO)].sort_values("low")
        if len(rows):
            frames.append(rows.assign(length=length))
            views.append(View(f"pieces of {formats.length(length)} tokens", [_gap_panel(context, rows)]))
    if not views:
        return []
    return [
        Figure(
            name="gaps",
            title="KL by distance to the last occurrence",
            alt="KL of every variant against how far back the predicted pair of tokens last stood.",
            caption="Of predicted tokens whose pair (the token before, the token) stood earlier in the document: "
            "beyond a window, only what else a mechanism keeps can help. Bands: 95 % intervals.",
            views=views,
            frame=pd.concat(frames, ignore_index=True),
            command="dvc repro evaluate",
            columns=1,
            height=300,
        )
    ]


def _gap_panel(context: Context, rows: pd.DataFrame) -> Panel:
    series = []
    for variant, own in rows.groupby("variant", sort=False):
        half = margin(own["kl_forward_se"].fillna(0))
        low, high = (own["kl_forward"] - half).clip(lower=own["kl_forward"] / 10), own["kl_forward"] + half
        notes = [f"{_span(row)} tokens back" for row in own.to_dict("records")]
        series.append(context.series(variant, own["low"], own["kl_forward"], low=low, high=high, notes=notes))
    x = Axis("last stood at least so many tokens back", log=True, ticks=ticks(rows["low"]))
    return Panel("", x, Axis("KL, nats per token", log=True), series)
