"""How a cost grows with length, what it comes to beyond the lengths measured, and where two costs cross."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Fit(NamedTuple):
    """cost ~ length^exponent, with a 95 % confidence interval; NaN bounds where two points leave no freedom."""

    exponent: float
    low: float
    high: float


def fit_exponent(lengths: Sequence[float], costs: Sequence[float], confidence: float = 0.95) -> Fit:
    """Least squares on logarithms, with Student's t for the interval.

    Args:
        lengths, costs: of equal size, at least two, positive; costs are medians.
    Raises: ValueError where they are not.
    """
    if len(lengths) != len(costs) or len(set(lengths)) < 2:
        raise ValueError(f"an exponent needs costs at two lengths or more, there are {len(costs)} at {list(lengths)}")
    if min(*lengths, *costs) <= 0:
        raise ValueError(f"an exponent needs positive costs, there are {list(costs)}")
    x, y = np.log(lengths), np.log(costs)
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    freedom = len(x) - 2
    if freedom < 1:
        return Fit(slope, math.nan, math.nan)
    from scipy.special import stdtrit

    residuals = y - y.mean() - slope * x
    error = math.sqrt(float(residuals @ residuals) / freedom / float(x @ x))
    half = float(stdtrit(freedom, 0.5 + confidence / 2)) * error
    return Fit(slope, slope - half, slope + half)


def extrapolate(
    lengths: Sequence[float], costs: Sequence[float] | np.ndarray, to: float, powers: tuple[int, int]
) -> np.ndarray:
    """The cost at a longer length as a n^p + b n^q with a, b >= 0: work per token of context is such a polynomial.

    The curve passes through the longest length measured, since what is short costs overhead that no longer counts;
    the others decide by least squares on relative errors how that cost divides into its two terms.

    Args:
        lengths: (K,) rising, two or more. costs: (..., K), positive. to: from the longest on.
        powers: (p, q), p < q: (0, 1) for decoding a token and its state, (1, 2) for prefill.

    Returns: (...). Raises: ValueError for anything else.
    """
    n, y = np.asarray(lengths, dtype=float), np.asarray(costs, dtype=float)
    if len(n) < 2 or y.shape[-1:] != n.shape or (np.diff(n) <= 0).any() or n[0] <= 0 or not (y > 0).all():
        raise ValueError(f"extrapolating needs positive costs at two rising lengths or more, there are {list(lengths)}")
    if to < n[-1]:
        raise ValueError(f"{to} tokens lie within the lengths measured, {list(lengths)}: nothing to extrapolate")
    low, high = ((n / n[-1]) ** p for p in powers)
    scaled = y / y[..., -1:]
    slope, rest = (high - low) / scaled, 1 - low / scaled
    share = np.clip((slope * rest).sum(-1) / (slope**2).sum(-1), 0, 1)
    near, far = ((to / n[-1]) ** p for p in powers)
    return y[..., -1] * (near + share * (far - near))


def extrapolations(
    lengths: Sequence[float],
    samples: Sequence[Sequence[float]],
    to: float,
    powers: tuple[int, int],
    resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Bootstrap of `extrapolate` from the medians of resampled raw samples at every length: (resamples,)."""
    return extrapolate(lengths, _medians(samples, resamples, np.random.default_rng(seed)), to, powers)


def _medians(samples: Sequence[Sequence[float]], resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Medians of samples drawn with replacement, (resamples, lengths)."""
    drawn = [rng.choice(values, (resamples, len(values))) for values in samples]
    return np.stack([np.median(values, axis=1) for values in drawn], axis=1)


def crossover(lengths: Sequence[float], a: Sequence[float], b: Sequence[float]) -> float | None:
    """The length from which `a` costs no more than `b`, up to the last length; interpolated on logarithms.

    Returns: the first length where `a` is never above; None where it still is at the last.
    Raises: ValueError where the sizes differ or a cost is not positive.
    """
    if not len(lengths) == len(a) == len(b) or not len(lengths) or min(*a, *b) <= 0:
        raise ValueError("a crossover needs two positive costs at every length")
    x = np.log(lengths)
    gap = np.log(a) - np.log(b)
    above = np.flatnonzero(gap > 0)
    if not len(above):
        return float(lengths[0])
    i = int(above[-1])
    if i == len(gap) - 1:
        return None
    return float(np.exp(x[i] + (x[i + 1] - x[i]) * gap[i] / (gap[i] - gap[i + 1])))


def crossover_interval(
    lengths: Sequence[float],
    a: Sequence[Sequence[float]],
    b: Sequence[Sequence[float]],
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float | None, float | None]:
    """Bootstrap interval of `crossover` over the raw samples at every length; None is beyond the last length."""
    rng = np.random.default_rng(seed)
    drawn = (_medians(samples, resamples, rng) for samples in (a, b))
    found = [crossover(lengths, *rows) for rows in zip(*drawn, strict=True)]
    tail = (1 - confidence) / 2
    bounds = np.quantile([math.inf if f is None else f for f in found], [tail, 1 - tail], method="inverted_cdf")
    low, high = (None if math.isinf(q) else float(q) for q in bounds)
    return low, high


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


def mean_and_error(values: np.ndarray, chosen: np.ndarray | None = None) -> tuple[float, float | None]:
    """The mean of values (blocks, n) where `chosen`, all by default, and its standard error over blocks.

    Blocks may hold different numbers of chosen tokens: the error is that of a ratio of sums. None for a single block.
    """
    chosen = np.ones(values.shape, bool) if chosen is None else chosen
    counts, sums = chosen.sum(1), np.where(chosen, values, 0).sum(1, dtype=np.float64)
    blocks, total = len(values), counts.sum()
    mean = float(sums.sum() / total)
    if blocks < 2:
        return mean, None
    return mean, float(math.sqrt(blocks / (blocks - 1) * ((sums - mean * counts) ** 2).sum()) / total)
