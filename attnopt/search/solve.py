"""One candidate for every layer, the sum of scores least within a budget: solved exactly, as a grouped knapsack.

Puzzle (arXiv:2411.19146) chooses its blocks so. `brute_force` is the slow obvious way.
"""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

Found = tuple[int, ...]
"""For each layer, which of the candidates stands there."""

LARGE = 1e4
"""What the largest score is scaled to: the solver stops within 1e-6 of the best sum."""


def cost_of(mix: Sequence[int], costs: np.ndarray) -> float:
    """The sum over layers of costs, or scores, (layers, candidates)."""
    return float(sum(costs[layer, candidate] for layer, candidate in enumerate(mix)))


def solve(scores: np.ndarray, costs: np.ndarray, budget: int, others_than: Sequence[Found] = ()) -> Found | None:
    """The mix with the least sum of scores.

    Args:
        scores: (layers, candidates). costs: the same, whole numbers.
        budget: what their costs may sum up to.
        others_than: mixes that it is not to be.
    Returns: None where no mix is within the budget.
    """
    layers, candidates = scores.shape
    unit = math.gcd(*costs.ravel().tolist()) or 1  # small numbers, so that the solver's tolerance admits no byte more
    one_each = np.kron(np.eye(layers), np.ones(candidates))
    constraints = [
        LinearConstraint(one_each, 1, 1),
        LinearConstraint((costs // unit).ravel()[None].astype(float), -np.inf, budget // unit),
        *(LinearConstraint(_indicator(mix, scores.shape)[None], -np.inf, layers - 1) for mix in others_than),
    ]
    ones = np.ones(scores.size)
    objective = scores.ravel() * (LARGE / (np.abs(scores).max() or 1))
    result = milp(
        objective, constraints=constraints, integrality=ones, bounds=Bounds(0, 1), options={"mip_rel_gap": 0.0}
    )
    if result.x is None:
        return None
    return tuple(np.round(result.x).reshape(scores.shape).argmax(1).tolist())


def best_few(scores: np.ndarray, costs: np.ndarray, budget: int, count: int) -> list[Found]:
    """The `count` mixes with the least sums, best first; fewer where there are no more within the budget."""
    found: list[Found] = []
    while len(found) < count and (mix := solve(scores, costs, budget, found)) is not None:
        found.append(mix)
    return found


def brute_force(scores: np.ndarray, costs: np.ndarray, budget: int, count: int = 1) -> list[Found]:
    """The same by looking at every mix."""
    layers, candidates = scores.shape
    within = [mix for mix in product(range(candidates), repeat=layers) if cost_of(mix, costs) <= budget]
    return sorted(within, key=lambda mix: cost_of(mix, scores))[:count]


def _indicator(mix: Found, shape: tuple[int, int]) -> np.ndarray:
    chosen = np.zeros(shape)
    chosen[np.arange(shape[0]), list(mix)] = 1
    return chosen.ravel()
