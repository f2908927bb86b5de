"""What each training stage buys: KL when swapped in, after fitting, and after each stage of the training."""

import math

import numpy as np
import pandas as pd

from attnopt import statistics as stats
from attnopt.report.context import ZERO, Answer, Context, absent, off_scale
from attnopt.report.parts import formats as words
from attnopt.report.parts.figures import Axis, Figure, Panel, Series, Style, one_view, ordered, row_height
from attnopt.report.parts.tables import Table, column

SLUG, QUESTION = "stages", "What did each training stage buy?"
STAGES = {
    "unfitted": "swapped in, unfitted",
    "fitted": "after fitting",
    "transfer": "after transfer",
    "align": "after alignment",
    "distill": "after KL on logits",
    "lora": "after adapters",
    "end": "after training",
}
"""In the order they run; `end` stands for records that do not tell their stages."""
NAMES = {"fitted": "Fitting to the teacher's activations", "transfer": "transfer", "align": "alignment"}
NAMES |= {"distill": "KL on logits", "lora": "adapters", "end": "training"}


def answer(context: Context) -> Answer:
    rows = _rows(context)
    shown = [stage for stage in STAGES if stage in rows]
    ranked = rows[rows["role"] == "candidate"]
    steps = [stage for stage in shown[1:] if len(_pairs(ranked, shown, stage))]
    if not steps:
        return absent(SLUG, QUESTION, "of no variant that competes the KL before and after training was recorded")
    parts = [f"{NAMES[stage]} leaves {_share(context, _pairs(ranked, shown, stage))}" for stage in steps]
    first = f"{parts[0]} of the swap's KL" if steps[0] == "fitted" else parts[0]
    later = f"; {words.listing(parts[1:])} of what was there before it" if parts[1:] else ""
    return Answer(
        slug=SLUG,
        question=QUESTION,
        short=f"{first}{later}.",
        sentences=[_most(_pairs(ranked, shown, stage), NAMES[stage]) for stage in steps],
        limits=["Geometric means over the variants that compete; intervals: 95 %, variants resampled."],
        figures=[_figure(context, rows, shown)],
        tables=[_table(context, rows, shown)],
    )


def _rows(context: Context) -> pd.DataFrame:
    """A row per variant, a column per stage that any of them has; means over seeds."""
    rows = context.quality.loc[context.quality["kl"].notna(), ["unfitted", "fitted", "end", "role"]]
    stages = context.records.stages
    after = stages.pivot_table(index="variant", columns="stage", values="kl_end") if len(stages) else pd.DataFrame()
    rows = rows.join(after[[stage for stage in STAGES if stage in after]])
    rows.loc[rows.index.isin(after.index), "end"] = math.nan
    rows = rows[rows["fitted"].notna() & ((rows["role"] != "control") | rows.index.isin(after.index))]
    return rows.drop(columns=[stage for stage in STAGES if stage in rows and rows[stage].isna().all()])


def _pairs(rows: pd.DataFrame, shown: list[str], stage: str) -> pd.DataFrame:
    """KL before and after a stage, of the variants that went through it."""
    earlier = rows[shown[: shown.index(stage)]].ffill(axis=1).iloc[:, -1]
    pairs = pd.DataFrame({"before": earlier, "after": rows[stage]}).dropna()
    return pairs[(pairs > 0).all(axis=1)]


def _share(context: Context, pairs: pd.DataFrame) -> str:
    """Geometric mean of after / before over variants, as a percentage with its interval."""
    logs = np.log(pairs["after"] / pairs["before"]).to_numpy()
    low, high = stats.bootstrap([log[None] for log in logs], lambda x: float(x.mean()), context.params.resamples)
    mean, low, high = (100 * math.exp(value) for value in (float(logs.mean()), low, high))
    return f"**{mean:.0f} %** [{low:.0f}, {high:.0f}]"


def _most(pairs: pd.DataFrame, what: str) -> str:
    """The variant whose KL changes by the best factor, and how many rise."""
    name = (pairs["before"] / pairs["after"]).idxmax()
    start, end = (words.number(float(pairs.loc[name, when])) for when in ("before", "after"))
    fall, risen = pairs.loc[name, "after"] < pairs.loc[name, "before"], int((pairs["after"] > pairs["before"]).sum())
    best = f"lowers KL most for {name}, from {start} to {end}" if fall else "lowers the KL of no variant"
    return f"{what[0].upper()}{what[1:]} {best}; KL rises for {risen} of {len(pairs)}."


def _table(context: Context, rows: pd.DataFrame, shown: list[str]) -> Table:
    return Table(
        name="stages",
        title="Validation KL by stage",
        columns={"variant": column("variant", context.name)}
        | {STAGES[stage]: column(stage, words.number) for stage in shown},
        frame=rows.drop(columns="role").reset_index(names="variant"),
        command="dvc repro distill",
        note="Means over seeds; a dash where a variant skips a stage.",
        text={"variant"},
    )


def _figure(context: Context, rows: pd.DataFrame, shown: list[str]) -> Figure:
    missing = off_scale(rows.assign(kl=rows[shown].min(axis=1)))
    rows = rows[rows[shown].min(axis=1) > ZERO]
    names = [context.name(str(v)) for v in rows.index]
    series = [
        Series("", Style("hair", "none"), list(kl), [name] * len(kl), points=False)
        for name, kl in zip(names, (row[shown].dropna() for _, row in rows.iterrows()), strict=True)
    ]
    for i, stage in enumerate(shown):
        series.append(Series(STAGES[stage], ordered(i, len(shown)), list(rows[stage]), names, line=False))
    panel = Panel("", Axis("validation KL, nats per token", log=True), Axis("", categories=names), series)
    return Figure(
        name="stages",
        title="KL at the swap and after each stage",
        alt=f"For every variant the KL {words.listing(STAGES[stage] for stage in shown)}.",
        caption=f"Validation split, means over seeds.{missing}",
        views=one_view(panel),
        frame=rows.drop(columns="role").reset_index(names="variant"),
        command="dvc repro distill",
        columns=1,
        height=row_height(len(names)),
    )
