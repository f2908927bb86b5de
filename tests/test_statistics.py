"""Exponents, extrapolations and crossovers of costs that are known."""

import math

import numpy as np
import pytest

from attnopt.statistics import crossover, crossover_interval, extrapolate, extrapolations, fit_exponent

LENGTHS = [256, 512, 1024, 2048, 4096]


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_exponent_of_a_power_is_exact(exponent):
    fit = fit_exponent(LENGTHS, [3.0 * n**exponent for n in LENGTHS])
    assert fit == pytest.approx((exponent, exponent, exponent), abs=1e-9)


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
