"""What each training stage buys: KL when swapped in, after fitting, after training."""

import math

import numpy as np
import pandas as pd

from attnopt.report import stats, words
from attnopt.report.context import Answer, Context, absent
from attnopt.report.figures import Axis, Figure, Panel, Series, Style, one_view, row_height
from attnopt.report.tables import Table, column

SLUG, QUESTION = "stages", "What did each training stage buy?"
STAGES = {"unfitted": "swapped in, unfitted", "fitted": "after fitting", "end": "after training"}
LOOKS = {"unfitted": Style("front", "circle"), "fitted": Style("grey", "diamond"), "end": Style("ink", "square")}


def answer(context: Context) -> Answer:
    rows = context.quality[context.quality["role"] != "control"]
    rows = rows.loc[rows[list(STAGES)].notna().all(axis=1), [*STAGES, "role"]]
    ranked = rows[rows["role"] == "candidate"]
    if not len(ranked):
        return absent(SLUG, QUESTION, "of no variant that competes the KL before and after training was recorded")
    fitting, training = (_share(context, ranked, *pair) for pair in (("unfitted", "fitted"), ("fitted", "end")))
    return Answer(
        slug=SLUG,
        question=QUESTION,
        short=f"Fitting to the teacher's activations leaves {fitting} of the swap's KL, training {training} of that.",
        sentences=[_most(ranked, "unfitted", "fitted", "Fitting"), _most(ranked, "fitted", "end", "Training")],
        limits=["Geometric means over the variants that compete; intervals: 95 %, variants resampled."],
        figures=[_figure(context, rows)],
        tables=[_table(context, rows)],
    )


def _share(context: Context, rows: pd.DataFrame, before: str, after: str) -> str:
    """Geometric mean of after / before over variants, as a percentage with its interval."""
    logs = np.log(rows[after] / rows[before]).to_numpy()
    low, high = stats.bootstrap([log[None] for log in logs], lambda x: float(x.mean()), context.params.resamples)
    mean, low, high = (100 * math.exp(value) for value in (float(logs.mean()), low, high))
    return f"**{mean:.0f} %** [{low:.0f}, {high:.0f}]"


def _most(rows: pd.DataFrame, before: str, after: str, what: str) -> str:
    """The variant whose KL falls by the largest factor."""
    name = (rows[before] / rows[after]).idxmax()
    start, end = (words.number(float(rows.loc[name, stage])) for stage in (before, after))
    return f"{what} lowers KL most for {name}, from {start} to {end}."


def _table(context: Context, rows: pd.DataFrame) -> Table:
    return Table(
        name="stages",
        title="Validation KL by stage",
        columns={"variant": column("variant", context.name)}
        | {label: column(stage, words.number) for stage, label in STAGES.items()},
        frame=rows.drop(columns="role").reset_index(names="variant"),
        command="dvc repro distill",
        note="Means over seeds.",
        text={"variant"},
    )


def _figure(context: Context, rows: pd.DataFrame) -> Figure:
    names = [context.name(str(v)) for v in rows.index]
    series = [
        Series("", Style("hair", "none"), list(row[list(STAGES)]), [name] * len(STAGES), points=False)
        for name, (_, row) in zip(names, rows.iterrows(), strict=True)
    ]
    series += [Series(label, LOOKS[stage], list(rows[stage]), names, line=False) for stage, label in STAGES.items()]
    panel = Panel("", Axis("validation KL, nats per token", log=True), Axis("", categories=names), series)
    return Figure(
        name="stages",
        title="KL at the swap, after fitting, after training",
        alt="For every variant the KL when swapped in, after fitting and after training.",
        caption="Validation split, means over seeds.",
        views=one_view(panel),
        frame=rows.drop(columns="role").reset_index(names="variant"),
        command="dvc repro distill",
        columns=1,
        height=row_height(len(names)),
    )
