"""The statistics of the report: ranks, bootstrap intervals and Pareto fronts. Fits and crossovers are the bench's."""

import math
from collections.abc import Callable, Sequence

import numpy as np

Interval = tuple[float, float]


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties averaged."""
    ordered = np.sort(x)
    return (np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right") + 1) / 2


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation; NaN where one side does not vary."""
    a, b = ranks(np.asarray(x)), ranks(np.asarray(y))
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / scale) if scale else math.nan


def bootstrap(
    groups: Sequence[np.ndarray], statistic: Callable[[np.ndarray], float], resamples: int, seed: int = 0
) -> Interval:
    """95 % percentile interval of statistic(rows), whole groups of rows drawn with replacement."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(groups), size=(resamples, len(groups)))
    return percentiles(np.array([statistic(np.concatenate([groups[i] for i in draw])) for draw in draws]))


def percentiles(values: np.ndarray) -> Interval:
    """The central 95 % of the values that are numbers."""
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def pareto(costs: np.ndarray) -> list[bool]:
    """Which rows of costs (n, k), less is better, no other row beats: as good in all and better in one."""
    costs = np.asarray(costs, dtype=float)
    return [not any((other <= row).all() and (other < row).any() for other in costs) for row in costs]
