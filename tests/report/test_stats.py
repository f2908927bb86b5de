import numpy as np
import pytest
from scipy import stats as reference

from attnopt import statistics as stats


def test_spearman_agrees_with_scipy_also_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 6, 12), rng.normal(size=12)
        assert stats.spearman(x, y) == pytest.approx(reference.spearmanr(x, y).statistic)


def test_spearman_of_a_constant_is_undefined():
    assert np.isnan(stats.spearman(np.ones(4), np.arange(4)))


def test_the_bootstrap_covers_a_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        rows = rng.normal(size=40)
        low, high = stats.bootstrap([row[None] for row in rows], lambda x: float(x.mean()), 300, seed)
        hits += low < 0 < high
    assert 0.88 <= hits / 200 <= 0.99


def test_the_bootstrap_draws_whole_groups():
    """Two groups without spread inside: the interval spans them, however many rows each has."""
    groups = [np.zeros(1000), np.ones(1000)]
    assert stats.bootstrap(groups, lambda x: float(x.mean()), 500) == (0.0, 1.0)


def test_percentiles_leave_out_what_is_undefined():
    assert stats.percentiles(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)
    assert np.isnan(stats.percentiles(np.array([np.nan]))).all()


def test_the_pareto_front_agrees_with_its_definition():
    rng = np.random.default_rng(0)
    costs = rng.integers(0, 4, (30, 3))
    for row, on_front in zip(costs, stats.pareto(costs), strict=True):
        beaten = any(all(o <= row) and any(o < row) for o in costs)
        assert on_front == (not beaten)
