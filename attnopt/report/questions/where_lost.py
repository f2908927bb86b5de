"""Which tokens and layers lose quality: tables, figures and sentences from what the students were probed for."""

import numpy as np
import pandas as pd

from attnopt.report.context import KL, ZERO, Context
from attnopt.report.data import summary
from attnopt.report.parts import formats
from attnopt.report.parts.figures import Axis, Figure, Panel, Series, View, one_view, ordered, row_height, ticks
from attnopt.report.parts.tables import Table, column, variant_column
from attnopt.statistics import margin

SEEN, NEW = "pair seen before", "new"
"""Classes by context: the first is the associative recall of Arora et al. 2023 (zoology)."""


def classes(context: Context) -> pd.DataFrame:
    """variant, by, class, kl, kl_se, of the variants that compete, on the report's split; means over seeds."""
    table = context.records.classes
    table = table[table["split"].eq(context.params.split) & table["variant"].isin(context.records.candidates)]
    return summary.pooled(table, ["variant", "by", "class"], {"kl": "kl_se"})


def layers(context: Context) -> pd.DataFrame:
    """variant, layer, and the mean, min and max over seeds of the relative output error, of those that compete."""
    table = context.records.layers
    table = table[table["variant"].isin(context.records.candidates)]
    return table.groupby(["variant", "layer"], sort=False)["error"].agg(["mean", "min", "max"]).reset_index()


def sentences(context: Context) -> list[str]:
    by_class, by_layer = classes(context), layers(context)
    return [*_recall(by_class), *_frequency(by_class), *_worst_layer(by_layer)]


def figures(context: Context) -> list[Figure]:
    by_class, by_layer = classes(context), layers(context)
    return [
        *([_class_figure(context, by_class)] if len(by_class) else []),
        *([_layer_figure(context, by_layer)] if len(by_layer) else []),
    ]


def tables(context: Context) -> list[Table]:
    by_class, by_layer = classes(context), layers(context)
    found = []
    for by, rows in by_class.groupby("by", sort=False):
        title = f"KL by {by} of the predicted token"
        found.append(_wide(context, rows, "class", "kl", f"classes_{by}", title))
    title = "Relative error of each layer's output on the teacher's own inputs"
    named = by_layer.assign(layer=[f"layer {int(n)}" for n in by_layer["layer"]])
    return [*found, *([_wide(context, named, "layer", "mean", "layer_errors", title)] if len(named) else [])]


def recall(by_class: pd.DataFrame) -> pd.DataFrame:
    """Indexed by variant: kl, kl_se on pairs seen before; ratio to that on new tokens with low, high (95 %).

    The classes' errors are taken as independent.
    """
    seen, new = (by_class[by_class["class"] == name].set_index("variant") for name in (SEEN, NEW))
    both = seen.join(new.add_suffix("_new"), how="inner")
    both = both[(both["kl"] > 0) & (both["kl_new"] > 0)]
    ratio = both["kl"] / both["kl_new"]
    factor = np.exp(margin(np.hypot(both["kl_se"] / both["kl"], both["kl_se_new"] / both["kl_new"])))
    found = both[["kl", "kl_se"]].assign(ratio=ratio, low=ratio / factor, high=ratio * factor)
    return found.sort_values("ratio", ascending=False, kind="stable")


def _recall(by_class: pd.DataFrame) -> list[str]:
    found = recall(by_class)
    if not len(found):
        return []
    most, least = (found.loc[name] for name in (found["kl"].idxmax(), found["kl"].idxmin()))
    top, (more, less) = found.iloc[0], (int((found["low"] > 1).sum()), int((found["high"] < 1).sum()))
    ratio = f"{formats.times(top['ratio'])} {formats.interval(top['low'], top['high'])}"
    kl = [f"**{row.name}** ({formats.plus_minus(row['kl'], row['kl_se'])})" for row in (most, least)]
    return [
        f"Associative recall, the predicted pair of tokens seen before in the block: KL there is highest for {kl[0]}, "
        f"lowest for {kl[1]}. It is above that on new tokens for {more} of {len(found)} variants, below it for {less}; "
        f"the ratio is highest for {top.name}, {ratio}."
    ]


def _frequency(by_class: pd.DataFrame) -> list[str]:
    rows = by_class[by_class["by"] == "frequency"]
    if not len(rows):
        return []
    worst = rows.loc[rows.groupby("variant", sort=False)["kl"].idxmax(), "class"].value_counts()
    of = rows["variant"].nunique()
    return [f"By how often the predicted token occurs in the train split, KL is highest on {_counts(worst, of)}."]


def _worst_layer(by_layer: pd.DataFrame) -> list[str]:
    if not len(by_layer):
        return []
    worst = by_layer.loc[by_layer.groupby("variant", sort=False)["mean"].idxmax(), "layer"]
    counts = ("layer " + worst.astype(int).astype(str)).value_counts()
    top = by_layer.loc[by_layer["mean"].idxmax()]
    span = "" if top["min"] == top["max"] else f" {formats.interval(top['min'], top['max'])} over seeds"
    return [
        f"Layer by layer on the teacher's own inputs, the error is largest in {_counts(counts, len(worst))}; largest "
        f"of all is {top['variant']}'s in layer {int(top['layer'])}, {formats.number(top['mean'])}{span} of the "
        "output's power."
    ]


def _counts(counts: pd.Series, of: int) -> str:
    return formats.listing(f"{name} for {n} of {of} variants" for name, n in counts.items())


def _wide(context: Context, rows: pd.DataFrame, across: str, value: str, name: str, title: str) -> Table:
    frame = rows.pivot_table(index="variant", columns=across, values=value, sort=False).reset_index()
    return Table(
        name=name,
        title=title,
        columns=[variant_column(context.name), *(column(str(k), str(k), formats.number) for k in frame.columns[1:])],
        frame=frame,
        command="dvc repro evaluate",
        note="Means over seeds.",
    )


def _class_figure(context: Context, by_class: pd.DataFrame) -> Figure:
    names = [context.name(str(v)) for v in dict.fromkeys(by_class["variant"])]
    views = []
    for by, rows in by_class[by_class["kl"] > ZERO].groupby("by", sort=False):
        series, parts = [], list(dict.fromkeys(rows["class"]))
        for i, part in enumerate(parts):
            own = rows[rows["class"] == part]
            half = margin(own["kl_se"].fillna(0))
            low, high = list((own["kl"] - half).clip(lower=ZERO)), list(own["kl"] + half)
            y = [context.name(v) for v in own["variant"]]
            series.append(Series(part, ordered(i, len(parts)), list(own["kl"]), y, low, high, along="x", line=False))
        views.append(View(f"by {by}", [Panel(f"By {by}", Axis(KL, log=True), Axis("", categories=names), series)]))
    return Figure(
        name="classes",
        title="KL by class of the predicted token",
        alt=f"KL on every class of tokens for {formats.listing(names)}.",
        caption=f"The {context.params.split} split, mean over seeds with a 95 % interval (blocks and seeds). By "
        "frequency: in the train split. By context: whether the predicted pair of tokens, the token alone or neither "
        "was seen before in the block.",
        views=views,
        frame=by_class,
        command="dvc repro evaluate",
        columns=1,
        height=row_height(len(names)),
    )


def _layer_figure(context: Context, by_layer: pd.DataFrame) -> Figure:
    series = []
    for variant, rows in by_layer[by_layer["mean"] > 0].groupby("variant", sort=False):
        series.append(context.series(variant, rows["layer"], rows["mean"], low=rows["min"], high=rows["max"]))
    x = Axis("layer", ticks=ticks(by_layer["layer"]))
    return Figure(
        name="layers",
        title="Output error by layer",
        alt="Relative output error of every variant's attention layers.",
        caption="‖student − teacher‖² / ‖teacher‖² of each attention layer's output, both on the teacher's own inputs, "
        "on some validation blocks; mean over seeds, band from the lowest to the highest seed.",
        views=one_view(Panel("", x, Axis("relative error", log=True), series)),
        frame=by_layer,
        command="dvc repro evaluate",
        columns=1,
        height=300,
    )
