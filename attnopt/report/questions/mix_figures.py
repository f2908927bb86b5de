"""The figures of the search: the front, what stands in each layer, sums against what was measured, single scores."""

from collections.abc import Mapping

import pandas as pd

from attnopt.records.search import HeldOutRow, SearchRecord
from attnopt.report.context import ZERO, Context
from attnopt.report.parts import formats
from attnopt.report.parts.figures import (
    Axis,
    Figure,
    Heat,
    Panel,
    Series,
    Style,
    one_view,
    ordered,
    plain,
    row_height,
    ticks,
)

SUMS = {"replaced": "Replaced alone", "restored": "Restored alone", "corrected": "Corrected"}
COMMAND = "dvc repro search"


def figures(context: Context, found: SearchRecord, ways: Mapping[str, str]) -> list[Figure]:
    return [_front(found, ways), _picture(context, found, ways), _predicted(found, ways), _scores(found)]


def _front(found: SearchRecord, ways: Mapping[str, str]) -> Figure:
    frame = pd.DataFrame([row.model_dump() for row in found.held_out if row.cost == "state"])
    frame = frame.assign(share=frame["bytes"] / found.softmax_bytes, layers=frame["layers"].map(" ".join))
    panels = []
    for key, title in {"kl": "On text", "recall": "On recalled values"}.items():
        shown = frame[(frame[key] > ZERO) & (frame["share"] > 0)]
        series = [
            Series(
                ways[str(way)], _look(str(way), ways), list(rows["share"]), list(rows[key]), line=way == "searched",
                notes=list(rows["layers"]),
            )
            for way, rows in shown.sort_values("share").groupby("way", sort=False)
        ]  # fmt: skip
        panels.append(
            Panel(title, Axis("state over softmax’s", log=True), Axis("KL, nats per token", log=True), series)
        )
    return Figure(
        name="mix_front",
        title="KL against state: mixes searched and their rivals",
        alt="KL of mixes of layers against the state that they hold.",
        caption="Test split; layers as transfer left them, none trained as a whole.",
        views=one_view(*panels),
        frame=frame,
        command=COMMAND,
        columns=2,
    )


def _picture(context: Context, found: SearchRecord, ways: Mapping[str, str]) -> Figure:
    """A row per mix, a mark per layer in the variant's own look."""
    rows = [
        {"mix": f"{_budget(row)}: {ways[row.way]}", "layer": i, "variant": name}
        for row in found.held_out
        for i, name in enumerate(row.layers)
    ]
    frame = pd.DataFrame(rows)
    names = list(dict.fromkeys(frame["mix"]))
    series = [
        Series(str(variant), _style(context, str(variant)), list(own["layer"]), list(own["mix"]), line=False)
        for variant, own in frame.groupby("variant", sort=False)
    ]
    return Figure(
        name="mix_layers",
        title="Which variant stands in which layer",
        alt="For every mix, the variant of each layer.",
        caption="Each row is a mix, by its budget and the way it was chosen; each mark a layer.",
        views=one_view(Panel("", Axis("layer", ticks=ticks(frame["layer"])), Axis("", categories=names), series)),
        frame=frame,
        command=COMMAND,
        columns=1,
        height=row_height(len(names)),
    )


def _predicted(found: SearchRecord, ways: Mapping[str, str]) -> Figure:
    frame = pd.DataFrame([row.model_dump() for row in found.mixes]).assign(
        layers=[" ".join(row.layers) for row in found.mixes]
    )
    panels = []
    for key, name in SUMS.items():
        if frame[key].isna().all():
            continue
        shown = frame[(frame[key] > ZERO) & (frame["total"] > ZERO)]
        ends = [float(shown[key].min()), float(shown[key].max())] if len(shown) else []
        series = [Series("as predicted", Style("front", "none"), ends, ends, points=False)] if ends else []
        series += [
            Series(
                ways[str(way)], _look(str(way), ways), list(rows[key]), list(rows["total"]), line=False,
                notes=list(rows["layers"]),
            )
            for way, rows in shown.groupby("way", sort=False)
        ]  # fmt: skip
        rho = next((row.value for row in found.spearman if (row.sums, row.of) == (key, "total")), None)
        title = name if rho is None else f"{name}, Spearman {formats.fixed(rho)}"
        panels.append(Panel(title, Axis("predicted", log=True), Axis("measured", log=True), series))
    return Figure(
        name="mix_predicted",
        title="Sum of single scores against the whole mix, measured",
        alt="Measured totals of mixes against what sums of scores of single layers predict.",
        caption=f"Valid split; KL on text plus {formats.number(found.recall_weight)} times that on recalled values. "
        "Spearman over the random mixes; corrected scores were fitted to the mixes searched, not to these.",
        views=one_view(*panels),
        frame=frame,
        command=COMMAND,
        columns=3,
    )


def _scores(found: SearchRecord) -> Figure:
    frame = pd.DataFrame([row.model_dump() for row in found.scores])
    panels = []
    for key, title in {"kl": "Replaced alone, text", "recall": "Replaced alone, recalled values"}.items():
        matrix = frame.pivot_table(index="variant", columns="layer", values=key, sort=False)
        heat = Heat([str(layer) for layer in matrix.columns], list(matrix.index), plain(matrix.to_numpy()), "KL")
        panels.append(Panel(title, Axis("layer"), Axis(""), heat=heat))
    return Figure(
        name="mix_scores",
        title="What a layer costs when it alone is replaced",
        alt="KL of the teacher with one layer replaced, by layer and variant.",
        caption="Valid split, nats per token. The download has the scores of layers restored alone too, if measured.",
        views=one_view(*panels),
        frame=frame,
        command=COMMAND,
        columns=2,
        height=row_height(len(found.variants)),
    )


def _budget(row: HeldOutRow) -> str:
    return formats.fraction(row.budget) + ("" if row.cost == "state" else f" of {row.cost} time")


def _style(context: Context, variant: str) -> Style:
    return context.looks.get(variant) or Style("ink", "plus")


def _look(way: str, ways: Mapping[str, str]) -> Style:
    return ordered(list(ways).index(way), len(ways))
