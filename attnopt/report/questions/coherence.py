"""Does KL predict coherence: rank correlation of KL with what the samples score."""

import pandas as pd

from attnopt.report import stats, summary, words
from attnopt.report.context import ZERO, Answer, Context, absent, off_scale
from attnopt.report.figures import Axis, Figure, Panel, Rule, one_view
from attnopt.report.tables import Table, column

SLUG, QUESTION = "coherence", "Does low KL mean coherent text?"
LEAST = 4
"""Variants, and different values, that a rank correlation takes at least."""
MEASURES = {
    "sample_ppl": "the teacher's perplexity of the samples",
    "repetition": "repetition",
    "distinct_2": "distinct-2",
}


def answer(context: Context) -> Answer:
    table = summary.coherence(context.records, context.params.split)
    ranked = table[table["role"] == "candidate"]
    measures = [m for m in MEASURES if ranked[m].notna().all() and ranked[m].nunique() >= LEAST]
    if ranked["variant"].nunique() < LEAST or not measures:
        return absent(SLUG, QUESTION, f"it takes KL and scored samples of {LEAST} competing variants or more")
    frame = pd.DataFrame([_correlation(context, ranked, measure) for measure in measures])
    shown = [f"**{words.fixed(r.rho)}** {words.interval(r.low, r.high)} with {r.measure}" for r in frame.itertuples()]
    runs = f"{words.plural(len(ranked), 'run')} of {ranked['variant'].nunique()} variants"
    short = f"{_verdict(frame.iloc[0])}: over {runs} the Spearman correlation of KL is {shown[0]}."
    sentences = [f"It is {words.listing(shown[1:])}."] if shown[1:] else []
    return Answer(
        slug=SLUG,
        question=QUESTION,
        short=short,
        sentences=sentences
        + [_leak(context, table, v) for v in table["variant"].unique() if v in context.records.leaks],
        limits=_limits(context, ranked),
        figures=[_figure(context, table)],
        tables=[_table(frame)],
    )


def _correlation(context: Context, table: pd.DataFrame, measure: str) -> dict[str, float | str]:
    groups = [rows[["kl", measure]].to_numpy() for _, rows in table.groupby("variant")]
    rho = stats.spearman(table["kl"].to_numpy(), table[measure].to_numpy())
    low, high = stats.bootstrap(groups, lambda r: stats.spearman(r[:, 0], r[:, 1]), context.params.resamples)
    return {"measure": MEASURES[measure], "rho": rho, "low": low, "high": high, "runs": len(table)}


def _verdict(row: pd.Series) -> str:
    return "Yes" if row["low"] > 0 else "The opposite" if row["high"] < 0 else "Not decided"


def _leak(context: Context, table: pd.DataFrame, variant: str) -> str:
    """What a leak looks like, in places among those that compete."""
    means = table.groupby("variant")[["kl", "sample_ppl"]].mean()
    own, others = means.loc[variant], means.loc[means.index.isin(context.records.candidates)]
    lower, worse = int((own["kl"] < others["kl"]).sum()), int((own["sample_ppl"] > others["sample_ppl"]).sum())
    leaky = min(lower, worse) > len(others) / 2
    return (
        f"The leaking control {variant} has KL {words.number(own['kl'])}, lower than {lower} of {len(others)} that "
        f"compete, and sample perplexity {words.number(own['sample_ppl'])}, higher than {worse} of {len(others)}"
        f"{': low KL and poor text, which is what a leak looks like' if leaky else ''}."
    )


def _limits(context: Context, ranked: pd.DataFrame) -> list[str]:
    each = int(context.records.samples.groupby(["variant", "seed"]).size().median())
    flat = [
        f"{label} takes {ranked[m].nunique()} values" for m, label in MEASURES.items() if ranked[m].nunique() < LEAST
    ]
    return [
        f"Each point rests on {words.plural(each, 'sample')}. Intervals: 95 %, whole variants resampled; controls and "
        "leaking variants left out. Checkpoints within a training run were not sampled.",
        *(f"Too flat to correlate: {words.listing(flat)}." for _ in flat[:1]),
    ]


def _figure(context: Context, table: pd.DataFrame) -> Figure:
    off = off_scale(table.groupby("variant")[["kl"]].mean())
    return Figure(
        name="coherence",
        title="Samples’ scores against KL",
        alt="Teacher's perplexity of the samples, repetition and distinct-2 against KL.",
        caption=f"One point per variant and seed.{off} A cross is a leaking control: it sees the tokens it predicts "
        "when KL is measured, and cannot when it writes.",
        views=one_view(*(_panel(context, table, m) for m in MEASURES if table[m].notna().any())),
        frame=table,
        command="dvc repro evaluate sample",
    )


def _panel(context: Context, table: pd.DataFrame, measure: str) -> Panel:
    perplexity = measure == "sample_ppl"
    series = [
        context.series(v, rows["kl"], rows[measure], line=False, notes=[f"seed {s}" for s in rows["seed"]])
        for v, rows in table[table["kl"] > ZERO].groupby("variant", sort=False)
    ]
    own = float(table["teacher_ppl_own"].median())
    rules = [Rule("y", own, "teacher's own text")] if perplexity and own == own else []
    y = Axis(MEASURES[measure].removeprefix("the "), log=perplexity)
    return Panel("", Axis("KL, nats per token", log=True), y, series, rules)


def _table(frame: pd.DataFrame) -> Table:
    return Table(
        name="correlations",
        title="Spearman correlations of KL",
        columns={
            "with": column("measure"),
            "correlation": column("rho", words.fixed),
            "95 % interval": lambda r: words.interval(r["low"], r["high"]),
            "runs": column("runs"),
        },
        frame=frame,
        command="dvc repro evaluate sample",
        text={"with"},
    )
