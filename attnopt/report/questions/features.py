"""How much random features vary from seed to seed, and how many it takes."""

import math

import numpy as np
import pandas as pd

from attnopt.report import stats, words
from attnopt.report.context import KL, Answer, Context, absent
from attnopt.report.figures import Axis, Figure, Panel, Series, Style, one_view, ticks

SLUG, QUESTION = "features", "How much do random features vary, and how many does it take?"
KIND = "performer"


def answer(context: Context) -> Answer:
    table = _runs(context)
    if not len(table):
        return absent(SLUG, QUESTION, "no variant with random features was trained and evaluated")
    several = table["features"].nunique() > 1
    more = "One number of features. How many it takes: `dvc exp run -S performer.features=64,128,256`."
    return Answer(
        slug=SLUG,
        question=QUESTION,
        short=_short(context, table),
        sentences=_counts(table),
        limits=[] if several else [more],
        figures=[_figure(context, table)] if several else [],
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


def _short(context: Context, table: pd.DataFrame) -> str:
    random = set(table["variant"])
    spread = _spread(context, random)
    if spread is None:
        return "Their spread is not from this run: one run of each, no spread across seeds."
    short = f"From seed to seed KL varies by **{words.percent(spread[0])}** {_between(spread)} (standard deviation)"
    rest = _spread(context, set(context.ranked.index) - random)
    return f"{short}, without random features by {words.percent(rest[0])} {_between(rest)}." if rest else f"{short}."


def _spread(context: Context, variants: set[str]) -> tuple[float, float, float] | None:
    """Pooled standard deviation of log KL over seeds, with the 95 % interval of a chi-squared variance."""
    table = context.evaluated
    table = table[table["variant"].isin(variants) & (table["kl_forward"] > 0)]
    logs = np.log(table["kl_forward"]).groupby(table["variant"])
    free = int((logs.size() - 1).sum())
    if free < 1:
        return None
    spread = math.sqrt(float(((logs.size() - 1) * logs.var(ddof=1).fillna(0)).sum()) / free)
    draws = np.random.default_rng(0).chisquare(free, 20_000)
    return spread, *stats.percentiles(spread * np.sqrt(free / draws))


def _between(spread: tuple[float, float, float]) -> str:
    return words.interval(*map(words.percent, spread[1:]))


def _counts(table: pd.DataFrame) -> list[str]:
    means = table.groupby("features")["kl"].agg(["mean", "sem", "count"])
    shown = [
        f"KL {words.plus_minus(row['mean'], row['sem'])} with {int(float(str(count)))} features "
        f"({words.plural(int(row['count']), 'run')})"
        for count, row in means.iterrows()
    ]
    return [f"{words.listing(shown)}."]


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
        title="KL against the number of random features",
        alt="KL of every run against its number of random features.",
        caption="Every run a point; the line joins the means.",
        views=one_view(Panel("", x, Axis(KL), series)),
        frame=table,
        command="dvc repro evaluate",
        columns=2,
        height=300,
    )
