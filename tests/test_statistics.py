"""Exponents, extrapolations and crossovers of costs that are known; estimates, correlations and resampling against scipy."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as reference

from attnopt.statistics import (
    STANDARD_ERRORS,
    Estimate,
    bootstrap,
    crossover,
    crossover_interval,
    extrapolate,
    extrapolations,
    fit_exponent,
    margin,
    pareto,
    percentiles,
    pooled_deviation,
    spearman,
    student_t,
    wilson,
)

LENGTHS = [256, 512, 1024, 2048, 4096]


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_exponent_of_a_power_is_exact(exponent):
    fit = fit_exponent(LENGTHS, [3.0 * n**exponent for n in LENGTHS])
    assert fit == pytest.approx((exponent, exponent, exponent), abs=1e-9)


def test_an_exponent_and_its_interval_are_those_of_scipys_regression():
    rng = np.random.default_rng(0)
    costs = np.array(LENGTHS) ** 1.2 * np.exp(0.2 * rng.standard_normal(5))
    same, found = reference.linregress(np.log(LENGTHS), np.log(costs)), fit_exponent(LENGTHS, costs)
    assert found.exponent == pytest.approx(same.slope)
    assert (found.high - found.low) / 2 == pytest.approx(reference.t.ppf(0.975, 3) * same.stderr)


def test_interval_covers_the_truth_in_95_of_100_noisy_runs():
    rng = np.random.default_rng(0)
    runs = [fit_exponent(LENGTHS, np.array(LENGTHS) ** 1.5 * np.exp(0.1 * rng.standard_normal(5))) for _ in range(1000)]
    assert np.mean([r.low <= 1.5 <= r.high for r in runs]) == pytest.approx(0.95, abs=0.03)


def test_two_lengths_give_an_exponent_without_an_interval():
    fit = fit_exponent([10, 100], [1, 100])
    assert fit.exponent == pytest.approx(2)
    assert math.isnan(fit.low)
    assert math.isnan(fit.high)


@pytest.mark.parametrize(("lengths", "costs"), [([1], [1]), ([2, 2], [1, 2]), ([1, 2], [1]), ([1, 2], [1, 0])])
def test_exponent_refuses_what_has_none(lengths, costs):
    with pytest.raises(ValueError, match="an exponent needs"):
        fit_exponent(lengths, costs)


@pytest.mark.parametrize("powers", [(0, 1), (1, 2)])
@pytest.mark.parametrize(("a", "b"), [(3.0, 0.002), (5.0, 0.0), (0.0, 0.01)])
def test_planted_coefficients_give_the_cost_beyond_the_lengths(powers, a, b):
    def cost(n):
        return a * n ** powers[0] + b * n ** powers[1]

    for lengths in ([1024, 4096], LENGTHS):
        assert extrapolate(lengths, [cost(n) for n in lengths], 32768, powers) == pytest.approx(cost(32768))


@pytest.mark.parametrize("powers", [(0, 1), (1, 2)])
def test_an_extrapolation_is_the_best_of_all_divisions_of_the_longest_cost(powers):
    """Against a search over a thousand of them, on costs that are no such polynomial."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        costs = np.array(LENGTHS) ** rng.uniform(powers[0] - 0.3, powers[1] + 0.3) * np.exp(0.2 * rng.normal(size=5))
        assert extrapolate(LENGTHS, costs, 8192, powers) == pytest.approx(_searched(costs, 8192, powers), rel=2e-3)


def _searched(costs, to, powers):
    """One division at a time: the share of the longest cost that the steeper term has."""
    best = (math.inf, math.nan)
    for share in np.linspace(0, 1, 1001):
        b = share * costs[-1] / LENGTHS[-1] ** powers[1]
        a = (1 - share) * costs[-1] / LENGTHS[-1] ** powers[0]
        curve = [a * n ** powers[0] + b * n ** powers[1] for n in [*LENGTHS, to]]
        error = sum((fitted / cost - 1) ** 2 for fitted, cost in zip(curve, costs, strict=False))
        best = min(best, (error, curve[-1]))
    return best[1]


@pytest.mark.parametrize(("powers", "slow", "fast"), [((0, 1), 1.0, 4.0), ((1, 2), 4.0, 16.0)])
def test_what_grows_less_or_more_than_its_terms_goes_on_as_the_nearer_of_them(powers, slow, fast):
    """Outside the steps that four times the length may take, and four times the length again."""
    less, more = extrapolate([1, 4], [[1.0, 0.9 * slow], [1.0, 1.5 * fast]], 16, powers)
    assert less == pytest.approx(0.9 * slow * slow)
    assert more == pytest.approx(1.5 * fast * fast)


@pytest.mark.parametrize(
    ("lengths", "costs", "to"),
    [
        *[([4], [1], 8), ([4, 4], [1, 2], 8), ([8, 4], [1, 2], 16), ([0, 4], [1, 2], 8), ([2, 4], [1], 8)],
        *[([2, 4], [1, 0], 8), ([2, 4], [1, math.nan], 8), ([2, 4], [1, 2], 3)],
    ],
)
def test_an_extrapolation_refuses_what_it_cannot_rest_on(lengths, costs, to):
    with pytest.raises(ValueError, match="extrapolat"):
        extrapolate(lengths, costs, to, (0, 1))


def test_the_interval_of_an_extrapolation_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        samples = [(3 + 0.002 * n) * np.exp(0.05 * rng.standard_normal(20)) for n in (1024, 4096)]
        low, high = np.quantile(extrapolations([1024, 4096], samples, 16384, (0, 1), 300), [0.025, 0.975])
        covered.append(low <= 3 + 0.002 * 16384 <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.04)


def test_crossover_of_a_line_and_a_square():
    linear, quadratic = [1000.0 * n for n in LENGTHS], [n**2 for n in LENGTHS]
    assert crossover(LENGTHS, linear, quadratic) == pytest.approx(1000)


def test_crossover_at_the_ends():
    low, high = [1.0] * 5, [2.0] * 5
    assert crossover(LENGTHS, low, high) == LENGTHS[0]
    assert crossover(LENGTHS, high, low) is None


def test_crossover_is_the_last_of_several():
    assert crossover([1, 2, 4, 8], [1, 3, 1, 1], [2, 1, 1.5, 2]) > 2


def test_crossover_interval_covers_the_crossover_and_grows_with_the_noise():
    rng = np.random.default_rng(0)

    def samples(costs, noise):
        return [c * np.exp(noise * rng.standard_normal(20)) for c in costs]

    widths = []
    for noise in (0.02, 0.2):
        a, b = samples([1000.0 * n for n in LENGTHS], noise), samples([float(n**2) for n in LENGTHS], noise)
        low, high = crossover_interval(LENGTHS, a, b)
        assert low is not None
        assert high is not None
        assert low <= 1000 * 1.1
        assert high >= 1000 / 1.1
        widths.append(high - low)
    assert 0 < widths[0] < widths[1]


def test_crossover_interval_beyond_the_lengths_is_open():
    never = crossover_interval(LENGTHS, [[2.0, 2.1]] * 5, [[1.0, 1.1]] * 5)
    assert never == (None, None)


def test_an_estimates_interval_is_that_of_a_normal_error():
    low, high = Estimate(3.0, 0.5).interval
    assert (low, high) == pytest.approx(reference.norm.interval(0.95, 3.0, 0.5), abs=1e-4)
    assert margin(0.5) == pytest.approx((high - low) / 2)


def test_an_estimate_is_clearly_above_another_by_the_error_of_their_difference():
    low, high = Estimate(1.0, 0.3), Estimate(2.0, 0.4)
    assert high.minus(low) == Estimate(1.0, 0.5)
    assert high.clearly_above(low), "2 standard errors of 0.5"
    assert not Estimate(1.97, 0.4).clearly_above(low), "1.94 of them"
    assert not low.clearly_above(high)
    assert Estimate(0.2, 0.1).clearly_above(0.0)
    assert not Estimate(0.19, 0.1).clearly_above(0.0)


def test_without_an_error_nothing_is_clear():
    assert not Estimate(5.0, math.nan).clearly_above(0.0)
    assert not Estimate(0.0, math.nan).minus(Estimate(5.0, 0.1)).clearly_above(0.0)


def test_half_a_t_interval_in_standard_errors():
    assert student_t(1) == pytest.approx(12.706, abs=1e-3)
    assert student_t(np.array([1, 3, 7])) == pytest.approx(reference.t.ppf(0.975, [1, 3, 7]))
    assert np.isnan(student_t(0))
    assert student_t(10_000) == pytest.approx(STANDARD_ERRORS, abs=1e-3)
    assert student_t(4, confidence=0.9) == pytest.approx(2.132, abs=1e-3)


def test_groups_share_a_deviation_by_their_degrees_of_freedom():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"group": [0, 0, 0, 1, 1, 2], "x": rng.normal(size=6)})
    groups = frame.groupby("group")["x"]
    within = frame["x"] - groups.transform("mean")
    deviation, freedom = pooled_deviation(groups.var(), groups.size())
    assert freedom == 3
    assert deviation == pytest.approx(math.sqrt(float((within**2).sum()) / 3))
    alone = frame.iloc[[0, 3]].groupby("group")["x"]
    assert pooled_deviation(alone.var(), alone.size()) == (pytest.approx(math.nan, nan_ok=True), 0)


def test_spearman_agrees_with_scipy_also_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 6, 12), rng.normal(size=12)
        assert spearman(x, y) == pytest.approx(reference.spearmanr(x, y).statistic)


def test_spearman_of_a_constant_is_undefined():
    assert np.isnan(spearman(np.ones(4), np.arange(4)))


@pytest.mark.slow
def test_the_bootstrap_covers_a_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        rows = rng.normal(size=40)
        low, high = bootstrap([row[None] for row in rows], lambda x: float(x.mean()), 300, seed)
        hits += low < 0 < high
    assert 0.88 <= hits / 200 <= 0.99


def test_the_bootstrap_draws_whole_groups():
    """Two groups without spread inside: the interval spans them, however many rows each has."""
    groups = [np.zeros(1000), np.ones(1000)]
    assert bootstrap(groups, lambda x: float(x.mean()), 500) == (0.0, 1.0)


def test_the_bootstrap_of_single_rows_is_scipys():
    rows = np.random.default_rng(1).normal(size=30)
    found = bootstrap([row[None] for row in rows], lambda x: float(x.mean()), 400)
    generator = np.random.default_rng(0)
    same = reference.bootstrap((rows,), np.mean, n_resamples=400, method="percentile", random_state=generator)
    assert found == pytest.approx(tuple(same.confidence_interval))


def test_percentiles_leave_out_what_is_undefined():
    assert percentiles(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)
    assert np.isnan(percentiles(np.array([np.nan]))).all()


def test_the_pareto_front_agrees_with_its_definition():
    rng = np.random.default_rng(0)
    costs = rng.integers(0, 4, (30, 3))
    for row, on_front in zip(costs, pareto(costs), strict=True):
        beaten = any(all(o <= row) and any(o < row) for o in costs)
        assert on_front == (not beaten)


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (3, 10), (10, 10), (199, 200)])
def test_wilsons_interval_is_scipys(hits: int, count: int):
    expected = reference.binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson(hits / count, count) == pytest.approx((expected.low, expected.high), abs=1e-4)
    assert wilson(hits / count, count / 2)[0] <= expected.low
