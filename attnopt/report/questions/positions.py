"""Where quality is lost: KL over the position in the block, by class of the predicted token, error by layer."""

import math

import numpy as np
import pandas as pd

from attnopt.report.context import ZERO, Answer, Context, absent
from attnopt.report.parts import formats
from attnopt.report.parts.figures import Axis, Figure, Panel, one_view
from attnopt.report.parts.tables import Column, Table, column, variant_column
from attnopt.report.questions import where_lost
from attnopt.statistics import bootstrap

SLUG, QUESTION = "positions", "Where in the sequence, on which tokens and in which layers is quality lost?"


def answer(context: Context) -> Answer:
    table = context.records.positions
    table = table[table["split"] == context.params.split]
    ranked = table[table["variant"].isin(context.ranked.index)]
    if not len(ranked):
        return absent(SLUG, QUESTION, "KL by position of no variant that competes was recorded")
    rows = [{"variant": v} | _quarters(context, group) for v, group in ranked.groupby("variant", sort=False)]
    frame = pd.DataFrame(rows).sort_values("ratio", ascending=False)
    probed = {"tokens": where_lost.classes(context), "layers": where_lost.layers(context)}
    lacking = [what for what, found in probed.items() if not len(found)]
    return Answer(
        slug=SLUG,
        question=QUESTION,
        short=_short(frame),
        sentences=where_lost.sentences(context),
        limits=[f"Which {formats.listing(lacking)} lose it is not from this run."] if lacking else [],
        figures=[_figure(context, table), *where_lost.figures(context)],
        tables=[_table(frame), *where_lost.tables(context)],
    )


def _quarters(context: Context, rows: pd.DataFrame) -> dict[str, float]:
    """Mean KL of a block's first and last quarter, and their ratio with a 95 % interval; none where the first is exact,
    as that of a window is while it holds all tokens."""
    kl = rows.groupby("position")["kl"].mean().to_numpy(float)
    quarter = max(1, len(kl) // 4)
    pairs = np.stack([kl[:quarter], kl[-quarter:]], axis=1)
    first, last = (float(mean) for mean in pairs.mean(0))
    if first <= ZERO:
        return {"first": first, "last": last} | dict.fromkeys(("ratio", "low", "high"), math.nan)
    low, high = bootstrap(
        [pair[None] for pair in pairs], lambda p: float(p[:, 1].mean() / p[:, 0].mean()), context.params.resamples
    )
    return {"first": first, "last": last, "ratio": last / first, "low": low, "high": high}


def _short(frame: pd.DataFrame) -> str:
    late, early, top = int((frame["low"] > 1).sum()), int((frame["high"] < 1).sum()), frame.iloc[0]
    ratio = f"{formats.times(top['ratio'])} {formats.interval(top['low'], top['high'])}"
    exact = frame[frame["ratio"].isna() & frame["last"].gt(ZERO)]
    most = f"; it rises most for **{top['variant']}**, {ratio}" if not math.isnan(top["ratio"]) else ""
    none = f" Exact in the first: {formats.listing([f'**{v}**' for v in exact['variant']])}." if len(exact) else ""
    return (
        f"KL is higher in the last quarter of a block than in the first for {late + len(exact)} of {len(frame)} "
        f"variants, lower for {early}{most}.{none}"
    )


def _table(frame: pd.DataFrame) -> Table:
    return Table(
        name="quarters",
        title="KL early and late in the block",
        columns=[
            variant_column(),
            column("first quarter", "first", formats.number),
            column("last quarter", "last", formats.number),
            column("last over first", "ratio", formats.times),
            Column("95 % interval", lambda r: formats.interval(r["low"], r["high"])),
        ],
        frame=frame,
        command="dvc repro evaluate",
        note="Intervals over resampled positions.",
    )


def _figure(context: Context, table: pd.DataFrame) -> Figure:
    edges = _bins(int(table["position"].max()))
    binned = table.assign(bin=np.searchsorted(edges, table["position"], "right"))
    series = []
    for variant, rows in binned[binned["kl"].gt(ZERO)].groupby("variant", sort=False):
        by_bin = rows.groupby(["bin", "seed"])[["position", "kl"]].mean().groupby("bin")
        mean, low, high = by_bin.mean(), by_bin["kl"].min(), by_bin["kl"].max()
        series.append(context.series(variant, mean["position"], mean["kl"], low=low, high=high))
    wide = table.pivot_table(index="position", columns=["variant", "seed"], values="kl", sort=False)
    wide.columns = pd.Index([f"{variant} seed {seed}" for variant, seed in wide.columns])
    return Figure(
        name="positions",
        title="KL by position",
        alt="KL of every variant over the number of tokens it has seen.",
        caption=f"The {context.params.split} split, positions in growing bins; mean over seeds, band from the lowest "
        "to the highest seed.",
        views=one_view(Panel("", Axis("tokens of context", log=True), Axis("KL, nats per token", log=True), series)),
        frame=wide.reset_index(),
        command="dvc repro evaluate",
        columns=1,
        height=340,
    )


def _bins(last: int) -> np.ndarray:
    """Bin edges from 1 to last that grow by about a third."""
    return np.unique(np.round(np.geomspace(1, last + 1, max(2, math.ceil(math.log(last + 1) / math.log(1.33))))))
