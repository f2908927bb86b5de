"""Which mask coefficients matter: their final values, their course over training, and the masks they make."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from attnopt.report.context import Answer, Context, absent
from attnopt.report.parts import formats
from attnopt.report.parts.figures import Axis, Figure, Heat, Panel, Series, ordered, plain, thinned
from attnopt.report.parts.figures import one_view as view
from attnopt.report.parts.tables import Column, Table, column
from attnopt.report.questions import pruning

SLUG, QUESTION = "coefficients", "Which mask coefficients matter, and what does dropping the small ones cost?"
SMALL = 0.05
"""A coefficient under this share of the largest counts as small."""
SHOWN = 16
"""Tokens that a drawn mask covers."""


def answer(context: Context) -> Answer:
    table = context.records.coefficients
    variants = [str(v) for v in table["variant"].unique() if context.records.variants[str(v)] == "masks"]
    if not variants:
        return absent(SLUG, QUESTION, "no masks variant recorded coefficients")
    found = Answer(slug=SLUG, question=QUESTION, short="")
    for variant in variants:
        own = table[table["variant"] == variant]
        last = own[own["step"] == own.groupby("seed")["step"].transform("max")]
        found.tables.append(_table(variant, last))
        found.figures += [_masks(variant, last), _curves(variant, own)]
    found.short, *found.sentences = [_sentence(v, t.frame) for v, t in zip(variants, found.tables, strict=True)]
    found.sentences += [sentence for variant in variants for sentence in pruning.sentences(context, variant)]
    found.figures += [figure for variant in variants for figure in pruning.figures(context, variant)]
    dropped = [table for variant in variants for table in pruning.tables(context, variant)]
    found.tables += dropped
    if not dropped:
        found.limits = [
            "No run with its small coefficients dropped was recorded: what that costs is not from this run."
        ]
    return found


def _table(variant: str, last: pd.DataFrame) -> Table:
    """A row per candidate, over layers, heads and seeds."""
    frame = last.groupby("name", sort=False)["value"].agg(["mean", "sem", "min", "max"]).reset_index()
    frame = frame.assign(share=frame["mean"] / frame["mean"].max()).sort_values("mean", ascending=False)
    return Table(
        name=f"coefficients_{variant}",
        title=f"Coefficients of {variant} after training",
        columns=[
            column("candidate", "name", kind="text"),
            Column("coefficient", lambda r: formats.plus_minus(r["mean"], r["sem"])),
            column("lowest", "min", formats.number),
            column("highest", "max", formats.number),
            column("share of the largest", "share", formats.percent),
        ],
        frame=frame,
        command=f"dvc repro distill@{variant}",
        note="Mean over layers, heads and seeds with its standard error.",
    )


def _sentence(variant: str, frame: pd.DataFrame) -> str:
    top, small = frame.iloc[0], list(frame.loc[frame["share"] < SMALL, "name"])
    value, limit = formats.plus_minus(top["mean"], top["sem"]), f"under {100 * SMALL:.0f} % of it"
    rest = f"{len(small)} of {len(frame)} are {limit}" + (f": {formats.listing(small)}" if small else "")
    return f"In {variant} **{top['name']}** has the largest coefficient ({value}); {rest}."


def _curves(variant: str, table: pd.DataFrame) -> Figure:
    """Every coefficient over training, one panel per layer."""
    names = list(dict.fromkeys(table["name"]))
    panels = []
    for layer, rows in table.groupby("layer"):
        series = [_curve(name, rows, i, len(names)) for i, name in enumerate(names)]
        panels.append(Panel(f"layer {_whole(layer)}", Axis("step"), Axis("coefficient"), series))
    return Figure(
        name=f"training_of_coefficients_{variant}",
        title=f"Coefficients of {variant} over training",
        alt=f"Coefficients of {variant} over training, one panel for each of {len(panels)} layers.",
        caption="Mean over seeds and heads; the band runs from lowest to highest.",
        views=view(*panels),
        frame=table.drop(columns="control"),
        command=f"dvc repro distill@{variant}",
        columns=min(4, len(panels)),
        height=220,
    )


def _curve(name: str, rows: pd.DataFrame, i: int, count: int) -> Series:
    steps = thinned(rows[rows["name"] == name].groupby("step")["value"].agg(["mean", "min", "max"]).reset_index())
    x, y, low, high = (list(steps[key]) for key in ("step", "mean", "min", "max"))
    return Series(name, ordered(i, count), x, y, low, high, points=False)


def _masks(variant: str, last: pd.DataFrame) -> Figure:
    """The coefficients, layers down and candidates across, beside the masks they make."""
    matrix = last.pivot_table(index="layer", columns="name", values="value", sort=False).sort_index()
    names, layers = [str(c) for c in matrix.columns], [f"layer {_whole(layer)}" for layer in matrix.index]
    heat = Heat(names, layers, plain(matrix.to_numpy()), "coefficient")
    panels = [Panel("coefficients", Axis("candidate"), Axis(""), heat=heat)]
    for layer, weights in zip(layers, matrix.to_numpy(), strict=True):
        mask = learned_mask(names, weights)
        if mask is not None:
            places = [str(i) for i in range(SHOWN)]
            panels.append(Panel(layer, Axis("key"), Axis("query"), heat=Heat(places, places, plain(mask), "weight")))
    return Figure(
        name=f"masks_{variant}",
        title=f"Learned masks of {variant}",
        alt=f"Heat maps of the coefficients of {variant} and of the mask of every layer.",
        caption=f"Mean over seeds and heads. Masks over the first {SHOWN} tokens: the weight of a key (column) for a "
        "query (row), before the softmax's own scores.",
        views=view(*panels),
        frame=last.drop(columns="control"),
        command=f"dvc repro distill@{variant}",
        height=240,
    )


def learned_mask(names: Sequence[str], weights: Sequence[float], size: int = SHOWN) -> np.ndarray | None:
    """sum_c weight_c M_c over `size` tokens (query, key), NaN in the future.

    Args:
        names: candidates such as last:3 (the 3rd-to-last token, last:1 the token itself), window:8, first:2, stride:4,
            full. None is returned where one is of no such family.
    """
    offset = np.subtract.outer(np.arange(size), np.arange(size))
    mask = np.zeros((size, size))
    for name, weight in zip(names, weights, strict=True):
        family, _, argument = name.partition(":")
        n = int(argument) if argument.isdigit() else 1
        families: dict[str, Any] = {
            "last": offset == n - 1,
            "window": offset < n,
            "first": np.broadcast_to(np.arange(size) < n, mask.shape),
            "stride": offset % max(n, 1) == 0,
            "full": offset >= 0,
        }
        if family not in families:
            return None
        mask += weight * families[family]
    return np.where(offset >= 0, mask, np.nan)


def _whole(layer: Any) -> int:
    return int(float(layer))
