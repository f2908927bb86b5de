"""The solver is exact: the same as looking at every mix; and no byte above the budget."""

import numpy as np
import pytest

from attnopt.search import rivals
from attnopt.search.solve import best_few, brute_force, cost_of, solve

LAYERS, CANDIDATES = 5, 7


def library(seed: int, layers: int = LAYERS) -> tuple[np.ndarray, np.ndarray]:
    """Scores and costs as a library has them: what holds more is mostly closer, softmax exact."""
    rng = np.random.default_rng(seed)
    bytes_of = np.array([2**21, 0, 2**18, 2**18 + 4096, 573_440, 310_272, 2**19])
    costs = np.tile(bytes_of, (layers, 1))
    scores = rng.gamma(1.0, 0.05, (layers, CANDIDATES)) / (1 + costs / 2**18)
    scores[:, 0], scores[:, 1] = 0, rng.gamma(2.0, 0.4, layers)
    return scores, costs


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.125, 0.2, 0.25, 0.5, 1.0])
def test_the_best_few_are_those_of_looking_at_every_mix(seed: int, share: float) -> None:
    scores, costs = library(seed)
    budget = int(share * costs[:, 0].sum())
    found, expected = best_few(scores, costs, budget, 4), brute_force(scores, costs, budget, 4)
    np.testing.assert_allclose([cost_of(m, scores) for m in found], [cost_of(m, scores) for m in expected], atol=1e-9)
    assert found == expected
    assert all(cost_of(mix, costs) <= budget for mix in found)
    assert solve(scores, costs, budget) == expected[0]


def test_a_budget_that_is_met_to_the_byte_is_met_and_one_byte_less_is_not() -> None:
    scores, costs = np.array([[0.0, 1.0]] * 3), np.array([[10_007, 5]] * 3)
    assert solve(scores, costs, 3 * 10_007) == (0, 0, 0)
    assert sum(solve(scores, costs, 3 * 10_007 - 1) or ()) == 1
    assert solve(scores, costs, 15) == (1, 1, 1)
    assert solve(scores, costs, 14) is None
    assert best_few(scores, costs, 15, 9) == [(1, 1, 1)]


def test_states_that_are_all_empty_fit_any_budget() -> None:
    assert solve(np.array([[2.0, 1.0]]), np.zeros((1, 2), dtype=int), 0) == (1,)


def test_layers_are_spread_evenly_or_at_both_ends() -> None:
    assert rivals.spread(2, 8) == [2, 6]
    assert rivals.spread(3, 5) == [0, 2, 4]
    assert rivals.ends(3, 8) == [0, 1, 7]
    assert rivals.ends(1, 5) == [0]


def test_interleaving_has_as_many_of_the_larger_as_the_budget_admits() -> None:
    scores, costs = np.array([[0.0, 1.0, 9.0]] * 8), np.array([[100, 20, 10]] * 8)
    assert rivals.interleaved(scores, costs, 320, rivals.spread) == (1, 1, 0, 1, 1, 1, 0, 1)
    assert rivals.interleaved(scores, costs, 320, rivals.ends) == (0, 1, 1, 1, 1, 1, 1, 0)
    assert rivals.interleaved(scores, costs, 79, rivals.spread) is None


def test_greedy_swaps_where_a_byte_is_cheapest_and_may_miss_the_best() -> None:
    scores, costs = np.array([[0.0, 1.0], [0.0, 1.5]]), np.array([[4, 2], [10, 1]])
    assert rivals.greedy(scores, costs, 14) == (0, 0)
    assert rivals.greedy(scores, costs, 13) == (0, 1)  # 1.5 / 9 a byte against 1.0 / 2
    assert rivals.greedy(scores, costs, 3) == (1, 1)
    assert rivals.greedy(scores, costs, 2) is None
    assert solve(scores, costs, 12) == (1, 0)  # the least sum of all
    assert rivals.greedy(scores, costs, 12) == (0, 1)


@pytest.mark.parametrize("seed", range(3))
def test_every_rival_is_within_the_budget_and_none_sums_to_less_than_the_solution(seed: int) -> None:
    scores, costs = library(seed)
    budget = int(0.2 * costs[:, 0].sum())
    parameters = np.tile(np.arange(CANDIDATES)[::-1], (LAYERS, 1))
    found = [
        *rivals.random_mixes(costs, budget, 20, seed),
        *(rivals.interleaved(scores, costs, budget, places) for places in (rivals.spread, rivals.ends)),
        rivals.greedy(scores, costs, budget),
        rivals.fewest_parameters(parameters, costs, budget),
    ]
    best = cost_of(solve(scores, costs, budget) or (), scores)
    for mix in found:
        assert mix is not None
        assert cost_of(mix, costs) <= budget
        assert cost_of(mix, scores) >= best - 1e-12
    assert len(set(found[:20])) > 10


def test_the_fewest_parameters_then_the_largest_state() -> None:
    parameters, costs = np.array([[5, 0, 0]] * 2), np.array([[1, 2, 8]] * 2)
    assert sorted(rivals.fewest_parameters(parameters, costs, 10) or ()) == [1, 2]
    assert rivals.fewest_parameters(parameters, costs, 3) in ((0, 1), (1, 0))
