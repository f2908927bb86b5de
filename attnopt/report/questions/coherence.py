"""Does KL predict coherence: rank correlation of KL with what the samples score."""

import pandas as pd

from attnopt import statistics
from attnopt.report.context import ZERO, Answer, Context, absent, off_scale
from attnopt.report.data import summary
from attnopt.report.parts import formats
from attnopt.report.parts.figures import Axis, Figure, Panel, Rule, one_view
from attnopt.report.parts.tables import Column, Table, column

SLUG, QUESTION = "coherence", "Does low KL mean coherent text?"
LEAST = 4
"""Variants, and different values, that a rank correlation takes at least."""
END = "end"
"""The step of a final student."""
FINAL = {"Yes": "it is above zero", "The opposite": "it is below zero", "Not decided": "it is not decided"}
"""The verdict of the final students, in a sentence."""
MEASURES = {
    "sample_ppl": "the teacher's perplexity of the samples",
    "repetition": "repetition",
    "distinct_2": "distinct-2",
}


def answer(context: Context) -> Answer:
    table = summary.coherence(context.records, context.params.split).assign(step=END)
    ranked = table[table["role"] == "candidate"]
    measures = [m for m in MEASURES if ranked[m].notna().all() and ranked[m].nunique() >= LEAST]
    if ranked["variant"].nunique() < LEAST or not measures:
        return absent(SLUG, QUESTION, f"it takes KL and scored samples of {LEAST} competing variants or more")
    kept = _kept(context, table, measures)
    points = _stacked(ranked, kept[kept["role"] == "candidate"])
    frame = pd.DataFrame([_correlation(context, points, m, "all points") for m in measures])
    alone = pd.DataFrame([_correlation(context, ranked, m, "final students") for m in measures])
    only_final = len(points) == len(ranked)
    return Answer(
        slug=SLUG,
        question=QUESTION,
        short=_short(points, frame, alone),
        sentences=[f"It is {formats.listing(shown)}." for shown in [_shown(frame)[1:]] if shown]
        + ([] if only_final else [_alone(alone)])
        + [_leak(context, table, v) for v in table["variant"].unique() if v in context.records.leaks],
        limits=_limits(context, ranked, points),
        figures=[_figure(context, _stacked(table, kept))],
        tables=[_table(frame if only_final else pd.concat([frame, alone]).sort_index(kind="stable"))],
    )


def _kept(context: Context, table: pd.DataFrame, measures: list[str]) -> pd.DataFrame:
    """The checkpoints that have every measure, of the trainings whose final student has them too."""
    kept = summary.coherence_on_the_way(context.records, context.params.split).dropna(subset=["kl", *measures])
    return kept.merge(table[["variant", "seed"]], on=["variant", "seed"])


def _stacked(final: pd.DataFrame, kept: pd.DataFrame) -> pd.DataFrame:
    """Final students, then checkpoints with their step."""
    return pd.concat([final, kept.astype({"step": int})], ignore_index=True) if len(kept) else final


def _correlation(context: Context, table: pd.DataFrame, measure: str, over: str) -> dict[str, float | str]:
    groups = [rows[["kl", measure]].to_numpy() for _, rows in table.groupby("variant")]
    rho = statistics.spearman(table["kl"].to_numpy(), table[measure].to_numpy())
    low, high = statistics.bootstrap(groups, lambda r: statistics.spearman(r[:, 0], r[:, 1]), context.params.resamples)
    runs = int((table["step"] == END).sum())
    counts = {"runs": runs, "checkpoints": len(table) - runs}
    return {"measure": MEASURES[measure], "over": over, "rho": rho, "low": low, "high": high, **counts}


def _short(points: pd.DataFrame, frame: pd.DataFrame, alone: pd.DataFrame) -> str:
    """The verdict over all points, and that of the final students where it is another."""
    all_points, final = _verdict(frame.iloc[0]), _verdict(alone.iloc[0])
    runs, checkpoints = (int(frame[count].iloc[0]) for count in ("runs", "checkpoints"))
    over = [formats.plural(runs, "run"), *([formats.plural(checkpoints, "checkpoint")] if checkpoints else [])]
    short = (
        f"{all_points}: over {formats.listing(over)} of {points['variant'].nunique()} variants "
        f"the Spearman correlation of KL is {_shown(frame)[0]}"
    )
    return f"{short}." if final == all_points else f"{short}; {FINAL[final]} with the final students alone."


def _alone(alone: pd.DataFrame) -> str:
    """The correlation that no training's progress makes."""
    return (
        f"Without checkpoints, over the {formats.plural(int(alone['runs'].iloc[0]), 'final student')} alone, it is "
        f"{formats.listing(_shown(alone))}."
    )


def _shown(frame: pd.DataFrame) -> list[str]:
    return [
        f"**{formats.fixed(r.rho)}** {formats.interval(r.low, r.high)} with {r.measure}" for r in frame.itertuples()
    ]


def _verdict(row: pd.Series) -> str:
    return "Yes" if row["low"] > 0 else "The opposite" if row["high"] < 0 else "Not decided"


def _leak(context: Context, table: pd.DataFrame, variant: str) -> str:
    """What a leak looks like, in places among those that compete."""
    means = table.groupby("variant")[["kl", "sample_ppl"]].mean()
    own, others = means.loc[variant], means.loc[means.index.isin(context.records.candidates)]
    lower, worse = int((own["kl"] < others["kl"]).sum()), int((own["sample_ppl"] > others["sample_ppl"]).sum())
    leaky = min(lower, worse) > len(others) / 2
    return (
        f"The leaking control {variant} has KL {formats.number(own['kl'])}, lower than {lower} of {len(others)} that "
        f"compete, and sample perplexity {formats.number(own['sample_ppl'])}, higher than {worse} of {len(others)}"
        f"{': low KL and poor text, which is what a leak looks like' if leaky else ''}."
    )


def _limits(context: Context, ranked: pd.DataFrame, points: pd.DataFrame) -> list[str]:
    each = _texts(context.records.samples, ["variant", "seed"])
    rests = formats.plural(each, "sample")
    whole, on_the_way = "whole variants resampled", " Checkpoints within a training run were not sampled."
    if len(points) > len(ranked):
        kept = _texts(context.records.checkpoint_samples, ["variant", "seed", "step"])
        rests += "" if kept == each else f", a checkpoint on {kept}"
        whole, on_the_way = f"{whole} with all their checkpoints", ""
    flat = [
        f"{label} takes {ranked[m].nunique()} values" for m, label in MEASURES.items() if ranked[m].nunique() < LEAST
    ]
    return [
        f"Each point rests on {rests}. Intervals: 95 %, {whole}; controls and leaking variants left out.{on_the_way}",
        *(f"Too flat to correlate: {formats.listing(flat)}." for _ in flat[:1]),
    ]


def _texts(samples: pd.DataFrame, keys: list[str]) -> int:
    """How many texts a student wrote."""
    return int(samples.groupby(keys).size().median())


def _figure(context: Context, table: pd.DataFrame) -> Figure:
    ended = table["step"] == END
    off = off_scale(table[ended].groupby("variant")[["kl"]].mean())
    small = "" if ended.all() else " Small hollow points are checkpoints of the same training."
    return Figure(
        name="coherence",
        title="Samples’ scores against KL",
        alt="Teacher's perplexity of the samples, repetition and distinct-2 against KL.",
        caption=f"One point per variant and seed.{small}{off} A cross is a leaking control: it sees the tokens it "
        "predicts when KL is measured, and cannot when it writes.",
        views=one_view(*(_panel(context, table, m) for m in MEASURES if table[m].notna().any())),
        frame=table,
        command="dvc repro evaluate sample",
    )


def _panel(context: Context, table: pd.DataFrame, measure: str) -> Panel:
    perplexity = measure == "sample_ppl"
    series = [
        context.series(v, rows["kl"], rows[measure], line=False, hollow=not ended, notes=_notes(rows))
        for (ended, v), rows in table[table["kl"] > ZERO].groupby([table["step"] == END, "variant"], sort=False)
    ]
    own = float(table.loc[table["step"] == END, "teacher_ppl_own"].median())
    rules = [Rule("y", own, "teacher's own text")] if perplexity and own == own else []
    y = Axis(MEASURES[measure].removeprefix("the "), log=perplexity)
    return Panel("", Axis("KL, nats per token", log=True), y, series, rules)


def _notes(rows: pd.DataFrame) -> list[str]:
    return [
        f"seed {seed}" if step == END else f"seed {seed}, checkpoint at step {step}"
        for seed, step in zip(rows["seed"], rows["step"], strict=True)
    ]


def _table(frame: pd.DataFrame) -> Table:
    return Table(
        name="correlations",
        title="Spearman correlations of KL",
        columns=[
            column("with", "measure", kind="text"),
            *([column("over", "over", kind="text")] if frame["over"].nunique() > 1 else []),
            column("correlation", "rho", formats.fixed),
            Column("95 % interval", lambda r: formats.interval(r["low"], r["high"])),
            column("runs", "runs"),
            *([column("checkpoints", "checkpoints")] if frame["checkpoints"].any() else []),
        ],
        frame=frame,
        command="dvc repro evaluate sample",
    )
