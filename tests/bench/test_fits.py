"""Exponents and crossovers of costs that are known."""

import math

import numpy as np
import pytest

from attnopt.bench.fits import crossover, crossover_interval, fit_exponent

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
