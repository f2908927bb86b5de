"""What each phase of the training buys: KL when swapped in, after fitting, and after each phase."""

import math

import numpy as np
import pandas as pd

from attnopt.report.context import ZERO, Answer, Context, absent, off_scale
from attnopt.report.parts import formats
from attnopt.report.parts.figures import Axis, Figure, Panel, Series, Style, one_view, ordered, row_height
from attnopt.report.parts.tables import Table, column, variant_column
from attnopt.statistics import bootstrap

SLUG, QUESTION = "phases", "What did each phase of training buy?"
PHASES = {
    "unfitted": "swapped in, unfitted",
    "fitted": "after fitting",
    "transfer": "after transfer",
    "align": "after alignment",
    "distill": "after KL on logits",
    "lora": "after adapters",
    "end": "after training",
}
"""In the order they run; `end` stands for a training of no phase."""
NAMES = {"fitted": "Fitting to the teacher's activations", "transfer": "transfer", "align": "alignment"}
NAMES |= {"distill": "KL on logits", "lora": "adapters", "end": "training"}


def answer(context: Context) -> Answer:
    rows = _rows(context)
    shown = [phase for phase in PHASES if phase in rows]
    ranked = rows[rows["role"] == "candidate"]
    steps = [phase for phase in shown[1:] if len(_pairs(ranked, shown, phase))]
    if not steps:
        return absent(SLUG, QUESTION, "of no variant that competes the KL before and after training was recorded")
    parts = [f"{NAMES[phase]} leaves {_share(context, _pairs(ranked, shown, phase))}" for phase in steps]
    first = f"{parts[0]} of the swap's KL" if steps[0] == "fitted" else parts[0]
    later = f"; {formats.listing(parts[1:])} of what was there before it" if parts[1:] else ""
    return Answer(
        slug=SLUG,
        question=QUESTION,
        short=f"{first}{later}.",
        sentences=[_most(_pairs(ranked, shown, phase), NAMES[phase]) for phase in steps],
        limits=["Geometric means over the variants that compete; intervals: 95 %, variants resampled."],
        figures=[_figure(context, rows, shown)],
        tables=[_table(context, rows, shown)],
    )


def _rows(context: Context) -> pd.DataFrame:
    """A row per variant, a column per phase that any of them has; means over seeds."""
    rows = context.quality.loc[context.quality["kl"].notna(), ["unfitted", "fitted", "end", "role"]]
    table = context.records.phases
    after = table.pivot_table(index="variant", columns="phase", values="kl_end") if len(table) else pd.DataFrame()
    rows = rows.join(after[[phase for phase in PHASES if phase in after]])
    rows.loc[rows.index.isin(after.index), "end"] = math.nan
    rows = rows[rows["fitted"].notna() & ((rows["role"] != "control") | rows.index.isin(after.index))]
    return rows.drop(columns=[phase for phase in PHASES if phase in rows and rows[phase].isna().all()])


def _pairs(rows: pd.DataFrame, shown: list[str], phase: str) -> pd.DataFrame:
    """KL before and after a phase, of the variants that went through it."""
    earlier = rows[shown[: shown.index(phase)]].ffill(axis=1).iloc[:, -1]
    pairs = pd.DataFrame({"before": earlier, "after": rows[phase]}).dropna()
    return pairs[(pairs > 0).all(axis=1)]


def _share(context: Context, pairs: pd.DataFrame) -> str:
    """Geometric mean of after / before over variants, as a percentage with its interval."""
    logs = np.log(pairs["after"] / pairs["before"]).to_numpy()
    low, high = bootstrap([log[None] for log in logs], lambda x: float(x.mean()), context.params.resamples)
    mean, low, high = (100 * math.exp(value) for value in (float(logs.mean()), low, high))
    return f"**{mean:.0f} %** [{low:.0f}, {high:.0f}]"


def _most(pairs: pd.DataFrame, what: str) -> str:
    """The variant whose KL changes by the best factor, and how many rise."""
    name = (pairs["before"] / pairs["after"]).idxmax()
    start, end = (formats.number(float(pairs.loc[name, when])) for when in ("before", "after"))
    fall, risen = pairs.loc[name, "after"] < pairs.loc[name, "before"], int((pairs["after"] > pairs["before"]).sum())
    best = f"lowers KL most for {name}, from {start} to {end}" if fall else "lowers the KL of no variant"
    return f"{what[0].upper()}{what[1:]} {best}; KL rises for {risen} of {len(pairs)}."


def _table(context: Context, rows: pd.DataFrame, shown: list[str]) -> Table:
    return Table(
        name="phases",
        title="Validation KL by phase",
        columns=[variant_column(context.name), *(column(PHASES[phase], phase, formats.number) for phase in shown)],
        frame=rows.drop(columns="role").reset_index(names="variant"),
        command="dvc repro distill",
        note="Means over seeds; a dash where a variant skips a phase.",
    )


def _figure(context: Context, rows: pd.DataFrame, shown: list[str]) -> Figure:
    missing = off_scale(rows.assign(kl=rows[shown].min(axis=1)))
    rows = rows[rows[shown].min(axis=1) > ZERO]
    names = [context.name(str(v)) for v in rows.index]
    series = [
        Series("", Style("hair", "none"), list(kl), [name] * len(kl), points=False)
        for name, kl in zip(names, (row[shown].dropna() for _, row in rows.iterrows()), strict=True)
    ]
    for i, phase in enumerate(shown):
        series.append(Series(PHASES[phase], ordered(i, len(shown)), list(rows[phase]), names, line=False))
    panel = Panel("", Axis("validation KL, nats per token", log=True), Axis("", categories=names), series)
    return Figure(
        name="phases",
        title="KL at the swap and after each phase",
        alt=f"For every variant the KL {formats.listing(PHASES[phase] for phase in shown)}.",
        caption=f"Validation split, means over seeds.{missing}",
        views=one_view(panel),
        frame=rows.drop(columns="role").reset_index(names="variant"),
        command="dvc repro distill",
        columns=1,
        height=row_height(len(names)),
    )
