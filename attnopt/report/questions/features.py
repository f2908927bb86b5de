"""How much random features vary from seed to seed, and how many it takes."""

import numpy as np
import pandas as pd

from attnopt.report.context import KL, Answer, Context, absent
from attnopt.report.parts import formats
from attnopt.report.parts.figures import Axis, Figure, Panel, Series, Style, one_view, ticks
from attnopt.report.questions import feature_draws as draws
from attnopt.statistics import percentiles, pooled_deviation

SLUG, QUESTION = "features", "How much do random features vary, and how many does it take?"
KIND = "performer"
SOURCES = {"data_seed": "features, the order of data fixed", "features_seed": "order of data, the features fixed"}
"""The seed that runs share -> what varies among them."""


def answer(context: Context) -> Answer:
    table, drawn = _runs(context), draws.draws_table(context)
    if not len(table) and not len(drawn):
        return absent(SLUG, QUESTION, "no variant with random features was trained and evaluated")
    several = table["features"].nunique() > 1
    more = "Trained with one number of features; others: `dvc exp run --queue -S ++performer.features=64,128,256`."
    return Answer(
        slug=SLUG,
        question=QUESTION,
        short=_short(context, table, drawn),
        sentences=[*draws.sentences(drawn), *_sources(context, table), *_counts(table)],
        limits=[] if several else [more],
        figures=[*draws.figures(context, drawn), *([_figure(context, table)] if several else [])],
    )


def _runs(context: Context) -> pd.DataFrame:
    """variant, seed, features, kl of every run with random features."""
    runs = context.records.runs
    counts = {
        row["variant"]: (row["options"] or {}).get("features")
        for row in runs[runs["kind"] == KIND].to_dict("records")
        if isinstance(row["options"], dict)
    }
    table = context.evaluated.rename(columns={"kl_forward": "kl"})
    table = table.assign(features=table["variant"].map(counts).astype(float))
    return table.loc[table["features"].notna(), ["variant", "seed", "features", "kl"]]


def _short(context: Context, table: pd.DataFrame, drawn: pd.DataFrame) -> str:
    """The spread of trained runs, or else that of untrained draws."""
    random = set(table["variant"])
    spread = _spread(_seeded(context, random), ["variant"])
    if spread is None:
        return _untrained(table, drawn)
    short = f"From seed to seed KL varies by **{formats.percent(spread[0])}** {_between(spread)} (standard deviation)"
    rest = _spread(_seeded(context, set(context.ranked.index) - random), ["variant"])
    return f"{short}, without random features by {formats.percent(rest[0])} {_between(rest)}." if rest else f"{short}."


def _untrained(table: pd.DataFrame, drawn: pd.DataFrame) -> str:
    """What draws say where no two trained runs are alike."""
    drawn = drawn[drawn["kl"] > 0]
    spread = _spread(drawn, ["variant", "features"])
    why = "one run of each, no spread across seeds" if len(table) else "no record of one trained and evaluated"
    if spread is None:
        return f"Their spread is not from this run: {why}."
    return (
        f"Untrained mechanisms, fitted to the teacher: KL varies by **{formats.percent(spread[0])}** {_between(spread)}"
        f" from draw to draw (standard deviation){draws.change(drawn)}. Trained, not from this run: {why}."
    )


def _seeded(context: Context, variants: set[str]) -> pd.DataFrame:
    """kl of every run of these variants, with the seeds of its data and of its features."""
    table = context.evaluated[["variant", "seed", "kl_forward"]].rename(columns={"kl_forward": "kl"})
    table = table[table["variant"].isin(variants) & (table["kl"] > 0)]
    seeds = context.records.runs[["variant", "seed", "data_seed", "features_seed"]]
    return table.merge(seeds.astype({"variant": str}), on=["variant", "seed"], how="left")


def _spread(table: pd.DataFrame, alike: list[str]) -> tuple[float, float, float] | None:
    """Standard deviation of log KL among runs alike in these columns, with the 95 % interval of a chi-squared variance.

    None where no two runs are alike.
    """
    logs = np.log(table["kl"]).groupby([table[key] for key in alike])
    spread, free = pooled_deviation(logs.var(ddof=1), logs.size())
    if free < 1:
        return None
    chi = np.random.default_rng(0).chisquare(free, 20_000)
    return spread, *percentiles(spread * np.sqrt(free / chi))


def _sources(context: Context, table: pd.DataFrame) -> list[str]:
    """The spread over features alone and over the order of data alone, where some runs share the other seed."""
    runs = _seeded(context, set(table["variant"]))
    if _spread(runs, ["variant"]) is None:
        return []
    found = []
    for shared, what in SOURCES.items():
        if spread := _spread(runs, ["variant", shared]):
            found.append(f"{formats.percent(spread[0])} {_between(spread)} over {what}")
    if not found:
        return [
            "Features and the order of data are drawn anew together with each seed: this run cannot tell them apart "
            "(`seed.data` fixes one)."
        ]
    return [f"Taken apart: {'; '.join(found)}."]


def _between(spread: tuple[float, float, float]) -> str:
    return formats.interval(*map(formats.percent, spread[1:]))


def _counts(table: pd.DataFrame) -> list[str]:
    means = table.groupby("features")["kl"].agg(["mean", "sem", "count"])
    if not len(means):
        return []
    shown = [
        f"KL {formats.plus_minus(row['mean'], row['sem'])} with {int(float(str(count)))} features "
        f"({formats.plural(int(row['count']), 'run')})"
        for count, row in means.iterrows()
    ]
    return [f"Trained: {formats.listing(shown)}."]


def _figure(context: Context, table: pd.DataFrame) -> Figure:
    means = table.groupby("features")["kl"].mean()
    series = [Series("mean", Style("front", "none"), list(means.index), list(means), points=False)]
    for variant, rows in table.groupby("variant", sort=False):
        points = context.series(variant, rows["features"], rows["kl"], notes=[f"seed {s}" for s in rows["seed"]])
        points.line, points.label = False, True
        series.append(points)
    x = Axis("random features per head", log=True, ticks=ticks(table["features"]))
    return Figure(
        name="features",
        title="Trained: KL against the number of random features",
        alt="KL of every run against its number of random features.",
        caption="Every run a point; the line joins the means.",
        views=one_view(Panel("", x, Axis(KL), series)),
        frame=table,
        command="dvc repro evaluate",
        columns=2,
        height=300,
    )
