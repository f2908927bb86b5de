"""What the search is held against: other ways to fill the same budget."""

from collections.abc import Callable, Iterator

import numpy as np

from attnopt.search.solve import Found, cost_of, solve

Places = Callable[[int, int], list[int]]
"""Where so many of all layers stand: (how many, layers) to indices."""


def spread(count: int, layers: int) -> list[int]:
    """Evenly spaced."""
    return [int((i + 0.5) * layers / count) for i in range(count)]


def ends(count: int, layers: int) -> list[int]:
    """The first and the last ones, one more of the first."""
    return [*range((count + 1) // 2), *range(layers - count // 2, layers)]


def interleaved(scores: np.ndarray, costs: np.ndarray, budget: int, places: Places) -> Found | None:
    """Two candidates: as many layers of the one at these places as the budget admits, the other everywhere else.

    Of all pairs the one with the least sum of scores; None where no pair is within the budget.
    """
    found = [mix for pair in np.ndindex(*[scores.shape[1]] * 2) for mix in _pairings(pair, costs, budget, places)]
    return min(found, key=lambda mix: cost_of(mix, scores), default=None)


def _pairings(pair: tuple[int, ...], costs: np.ndarray, budget: int, places: Places) -> Iterator[Found]:
    """The mix of a pair with the most layers of the first."""
    first, second = pair
    layers = len(costs)
    for count in range(layers, -1, -1):
        chosen = set(places(count, layers)) if count else set()
        mix = tuple(first if layer in chosen else second for layer in range(layers))
        if cost_of(mix, costs) <= budget:
            yield mix
            return


def greedy(scores: np.ndarray, costs: np.ndarray, budget: int) -> Found | None:
    """From the best candidate of every layer on, one swap after the other: what adds least score per byte saved."""
    mix = scores.argmin(1)
    while cost_of(mix.tolist(), costs) > budget:
        steps = [
            ((scores[layer, new] - scores[layer, old]) / saved, layer, new)
            for layer, old in enumerate(mix)
            for new in range(scores.shape[1])
            if (saved := costs[layer, old] - costs[layer, new]) > 0
        ]
        if not steps:
            return None
        _, layer, new = min(steps)
        mix[layer] = new
    return tuple(mix.tolist())


def fewest_parameters(parameters: np.ndarray, costs: np.ndarray, budget: int) -> Found | None:
    """Mechanisms that add the fewest parameters; of these what holds the most."""
    return solve(parameters - costs / (costs.sum() + 1), costs, budget)


def random_mixes(costs: np.ndarray, budget: int, count: int, seed: int) -> list[Found]:
    """The best mixes by scores that are drawn anew for each."""
    rng = np.random.default_rng(seed)
    found = [solve(rng.random(costs.shape), costs, budget) for _ in range(count)]
    return [mix for mix in found if mix is not None]
