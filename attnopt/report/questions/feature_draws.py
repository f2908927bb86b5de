"""Random features, fitted and untrained: KL against how many there are, with its spread over draws."""

from typing import Any

import numpy as np
import pandas as pd

from attnopt.report.context import KL, Context
from attnopt.report.parts import formats
from attnopt.report.parts.figures import Axis, Figure, Panel, Style, one_view, ticks
from attnopt.statistics import pooled_deviation, student_t


def draws_table(context: Context) -> pd.DataFrame:
    """variant, features, draw, seed and kl of every draw of the variants that compete."""
    rows = context.records.features.rename(columns={"kl_forward": "kl"})
    return rows.loc[rows["variant"].isin(context.records.candidates), ["variant", "features", "seed", "draw", "kl"]]


def sentences(drawn: pd.DataFrame) -> list[str]:
    return [_sentence(str(variant), rows) for variant, rows in drawn.groupby("variant", sort=False)]


def enough(rows: pd.DataFrame) -> tuple[int | None, float]:
    """The least number of features that no larger one beats, and the spread over draws.

    The spread is the standard deviation of log KL, pooled over the numbers; beaten is one by a t test of
    means of log KL, at 5 % over all pairs. (None, NaN) where every number was drawn once.
    """
    logs = np.log(rows["kl"]).groupby(rows["features"]).agg(["mean", "var", "size"]).sort_index()
    spread, free = pooled_deviation(logs["var"], logs["size"])
    if free < 1:
        return None, np.nan
    sizes, pairs = logs["size"].to_numpy(), len(logs) * (len(logs) - 1) / 2
    error = spread * student_t(free, 1 - 0.05 / max(pairs, 1)) * np.sqrt(1 / sizes[:, None] + 1 / sizes)
    gain = logs["mean"].to_numpy()[:, None] - logs["mean"].to_numpy()
    beaten = np.triu(gain > error, 1).any(1)
    return int(logs.index[~beaten][0]), spread


def change(drawn: pd.DataFrame) -> str:
    """How KL changes from the smallest to the largest number of features that every variant has, as a clause."""
    found = _change(drawn)
    if found is None:
        return ""
    few, many, ratio, low, high = found
    counts = f"from {few} to {many} features"
    if low <= 1 <= high:
        return (
            f" and does not change beyond that {counts} {formats.interval(*map(formats.percent, (low - 1, high - 1)))}"
        )
    verb, bounds = ("falls", (1 - high, 1 - low)) if ratio < 1 else ("rises", (low - 1, high - 1))
    size = f"**{formats.percent(abs(1 - ratio))}** {formats.interval(*map(formats.percent, bounds))}"
    return f" and {verb} by {size} {counts}"


def _change(drawn: pd.DataFrame) -> tuple[int, int, float, float, float] | None:
    """Fewest and most features; KL with the most relative to the fewest, with its 95 % t interval.

    The mean over variants of differences of log KL, on the spread over draws pooled over variants and numbers.
    None where there is one number, or one draw of each.
    """
    every = set.intersection(*(set(rows["features"]) for _, rows in drawn.groupby("variant")))
    logs = np.log(drawn["kl"]).groupby([drawn["variant"], drawn["features"]]).agg(["mean", "var", "size"])
    spread, free = pooled_deviation(logs["var"], logs["size"])
    if len(every) < 2 or free < 1:
        return None
    few, many = (logs.xs(count, level="features") for count in (min(every), max(every)))
    difference = float((many["mean"] - few["mean"]).mean())
    error = spread * float(np.sqrt((1 / few["size"] + 1 / many["size"]).sum())) / len(few)
    half = float(student_t(free)) * error
    ratio, low, high = (float(np.exp(difference + way * half)) for way in (0, -1, 1))
    return int(min(every)), int(max(every)), ratio, low, high


def _sentence(variant: str, rows: pd.DataFrame) -> str:
    means = rows.groupby("features")["kl"].mean()
    shown = formats.listing(
        f"{formats.number(kl)} with {int(count)}" for count, kl in zip(means.index, means, strict=True)
    )
    found = f"{variant}, fitted to the teacher and untrained: KL {shown} features"
    least, spread = enough(rows)
    if least is None:
        return f"{found}, one draw each: their spread is not from this run."
    over = f"{formats.plural(len(rows), 'draw')} in all, standard deviation {formats.percent(spread)} from draw to draw"
    largest = int(means.index.max())
    if least == largest:
        end = f"it still falls beyond that spread up to the largest number, {largest}"
    elif least == int(means.index.min()):
        end = "more of them than the smallest number do not lower it beyond that spread"
    else:
        end = f"from **{least}** on it no longer falls beyond that spread"
    return f"{found} ({over}); {end}."


def figures(context: Context, drawn: pd.DataFrame) -> list[Figure]:
    if not len(drawn):
        return []
    series = []
    for variant, rows in drawn.groupby("variant", sort=False):
        by_count: Any = rows.groupby("features")["kl"].agg(["mean", "min", "max"]).sort_index()
        low, high = by_count["min"], by_count["max"]
        mean = context.series(variant, by_count.index, by_count["mean"], low=low, high=high)
        notes = [f"seed {seed}, draw {draw:.0f}" for seed, draw in zip(rows["seed"], rows["draw"], strict=True)]
        dots = context.series(variant, rows["features"], rows["kl"], notes=notes)
        dots.style, dots.line = Style(dots.style.colour, "tick"), False
        series += [mean, dots]
    x = Axis("random features per head", log=True, ticks=ticks(drawn["features"]))
    return [
        Figure(
            name="draws",
            title="Untrained: KL against the number of random features",
            alt="KL of freshly drawn features, fitted and untrained, against their number.",
            caption="On validation blocks. Lines: means over draws; ticks: single draws; bands: lowest to highest.",
            views=one_view(Panel("", x, Axis(KL, log=True), series)),
            frame=drawn,
            command="dvc repro evaluate",
            columns=1,
            height=300,
        )
    ]
