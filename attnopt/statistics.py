"""The statistics behind every number of the report: errors, intervals, correlations, growth with length, crossovers.

What stays our own though scipy.stats has something like it says why. tests/test_statistics.py holds them against it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from scipy.special import stdtrit

if TYPE_CHECKING:
    import pandas as pd

STANDARD_ERRORS = 1.96
"""How many of them a 95 % interval reaches to either side, and how many make a difference clear: errors are normal."""

Interval = tuple[float, float]
Errors = TypeVar("Errors", float, "pd.Series")


def margin(error: Errors) -> Errors:
    """Half the width of a 95 % interval, from a standard error or a column of them."""
    return STANDARD_ERRORS * error


@dataclass(frozen=True)
class Estimate:
    """A number and how well it is known.

        Estimate(0.52, 0.01).clearly_above(Estimate(0.48, 0.01))  # True: 0.04 against 1.96 * 0.014

    Attributes:
        value: the estimate itself.
        error: its standard error; NaN where nothing says how large it is, and then nothing is clear.
    """

    value: float
    error: float

    @property
    def interval(self) -> Interval:
        """The central 95 %, taking the error as normal."""
        return self.value - margin(self.error), self.value + margin(self.error)

    def minus(self, other: "Estimate") -> "Estimate":
        """The difference of two independent estimates."""
        return Estimate(self.value - other.value, float(np.hypot(self.error, other.error)))

    def clearly_above(self, other: "Estimate | float") -> bool:
        """Whether the difference is more than STANDARD_ERRORS of its own; a plain number has no error."""
        difference = self.minus(other if isinstance(other, Estimate) else Estimate(other, 0.0))
        return difference.value > margin(difference.error)


class Fit(NamedTuple):
    """cost ~ length^exponent, with a 95 % confidence interval; NaN bounds where two points leave no freedom."""

    exponent: float
    low: float
    high: float


def student_t(freedom: "float | pd.Series", confidence: float = 0.95) -> np.ndarray:
    """How many standard errors a two-sided t interval reaches to either side.

    `stdtrit` is what `scipy.stats.t.ppf` calls; importing scipy.stats takes 0.4 s more than importing scipy.special.

    Args:
        freedom: degrees of freedom, one number or many; fewer than 1 give NaN.
    """
    return stdtrit(freedom, 0.5 + confidence / 2)


def wilson(share: float, count: float) -> Interval:
    """95 % interval of a share of `count` trials (Wilson 1927), which keeps a width at 0 and at 1.

    Our own: `scipy.stats.binomtest` wants whole trials, and takes 0.4 s to import.

    Args:
        count: of independent trials, above 0; need not be whole.
    """
    z2 = STANDARD_ERRORS**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = STANDARD_ERRORS / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def pooled_deviation(variances: "pd.Series", sizes: "pd.Series") -> tuple[float, int]:
    """The standard deviation within groups that are taken to share one.

    Args:
        variances: of every group, over its size less one; NaN for a group of one.
        sizes: of the same groups.

    Returns: the deviation, NaN where every group is of one; the degrees of freedom that it was estimated with.
    """
    freedom = int((sizes - 1).sum())
    if freedom < 1:
        return math.nan, 0
    return math.sqrt(float(((sizes - 1) * variances.fillna(0)).sum()) / freedom), freedom


def fit_exponent(lengths: Sequence[float], costs: Sequence[float], confidence: float = 0.95) -> Fit:
    """Least squares on logarithms, with Student's t for the interval.

    Our own: `scipy.stats.linregress` has no error, NaN, for costs that do not change, such as the bytes of a state that
    does not grow, where it is zero.

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
    residuals = y - y.mean() - slope * x
    error = math.sqrt(float(residuals @ residuals) / freedom / float(x @ x))
    half = float(student_t(freedom, confidence)) * error
    return Fit(slope, slope - half, slope + half)


def extrapolate(
    lengths: Sequence[float], costs: Sequence[float] | np.ndarray, to: float, powers: tuple[int, int]
) -> np.ndarray:
    """The cost at a longer length as a n^p + b n^q with a, b >= 0: work per token of context is such a polynomial.

    The curve passes through the longest length measured, since what is short costs overhead that no longer counts;
    the others decide by least squares on relative errors how that cost divides into its two terms. Our own: with one
    point held fast a single share is left to find, which is a quotient, where scipy would iterate for each resample.

    Args:
        lengths: (K,) rising, two or more.
        costs: (..., K), positive.
        to: a length from the longest on.
        powers: (p, q), p < q: (0, 1) for decoding a token and its state, (1, 2) for prefill.

    Returns: (...).

    Raises: ValueError for anything else.
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

    Our own: scipy finds roots of functions, not the last sign change of a sampled one.

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


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation; NaN where one side does not vary.

    Our own: a bootstrap calls it thousands of times, and `scipy.stats.spearmanr`, which also computes a p-value, takes
    ten times as long for the same number.
    """
    a, b = _ranks(np.asarray(x)), _ranks(np.asarray(y))
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / scale) if scale else math.nan


def _ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties averaged."""
    ordered = np.sort(x)
    return (np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right") + 1) / 2


def bootstrap(
    groups: Sequence[np.ndarray], statistic: Callable[[np.ndarray], float], resamples: int, seed: int = 0
) -> Interval:
    """95 % percentile interval of statistic(rows), whole groups of rows drawn with replacement.

    Our own: `scipy.stats.bootstrap` draws the same, but knows no groups of different sizes and gives NaN as soon as the
    statistic is undefined for one resample, such as a correlation with a constant.

    Args:
        groups: the rows of each group, (n_i, ...).
        statistic: of the rows of the groups drawn, stacked: (sum of n_i, ...) -> a number.
    """
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

    Blocks may hold different numbers of chosen tokens, so the error is that of a ratio of sums, which scipy has not.

    Returns: the mean, and its standard error: None for a single block.
    """
    chosen = np.ones(values.shape, bool) if chosen is None else chosen
    counts, sums = chosen.sum(1), np.where(chosen, values, 0).sum(1, dtype=np.float64)
    blocks, total = len(values), counts.sum()
    mean = float(sums.sum() / total)
    if blocks < 2:
        return mean, None
    return mean, float(math.sqrt(blocks / (blocks - 1) * ((sums - mean * counts) ** 2).sum()) / total)
