"""Scores of single layers, and their correction by mixes that were measured whole.

The sum of scores predicts a whole mix only about: the published gap is 1.25 to 3 times, as an error in one layer
reaches the next. So the scores are scaled, and each is moved a little, to what was measured.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from attnopt.search.mixable import Mixable
from attnopt.search.probe import Measured
from attnopt.search.solve import Found, cost_of

Measure = Callable[[Found, int], Measured]
"""Of a mix, whose first layers, so many, the next ones have in common with it."""
DOUBT = 0.1
"""Of the ridge: the variance of a measured mix about its prediction, over that of a score about what it should be."""


@dataclass(frozen=True)
class Scores:
    """(layers, candidates) each, nats per token, on text and on recalled values."""

    kl: np.ndarray
    recall: np.ndarray

    def total(self, recall_weight: float) -> np.ndarray:
        """(layers, candidates) what the search adds up."""
        return self.kl + recall_weight * self.recall


def replaced(mixable: Mixable, measure: Measure, progress: Callable[[list], Iterable] = iter) -> Scores:
    """Of a layer that alone is replaced in the teacher."""
    kl, recall = (np.zeros((mixable.depth, len(mixable.names))) for _ in range(2))
    for layer, candidate in progress(sorted(_places(mixable))):
        found = measure(_with(mixable.uniform(0), layer, candidate), layer)
        kl[layer, candidate], recall[layer, candidate] = found.kl, found.recall
    return Scores(kl, recall)


def restored(mixable: Mixable, measure: Measure, progress: Callable[[list], Iterable] = iter) -> Scores:
    """What the teacher's layer, put back alone, gains in the student that has a candidate in every layer."""
    kl, recall = (np.zeros((mixable.depth, len(mixable.names))) for _ in range(2))
    for layer, candidate in progress(_places(mixable)):
        whole = measure(tuple(mixable.uniform(candidate)), 0)
        found = measure(_with(mixable.uniform(candidate), layer, 0), layer)
        kl[layer, candidate], recall[layer, candidate] = whole.kl - found.kl, whole.recall - found.recall
    return Scores(kl, recall)


def _places(mixable: Mixable) -> list[tuple[int, int]]:
    """Every layer of every candidate but softmax, whose scores are 0."""
    return [(layer, candidate) for candidate in range(1, len(mixable.names)) for layer in range(mixable.depth)]


def _with(mix: list[int], layer: int, candidate: int) -> Found:
    mix[layer] = candidate
    return tuple(mix)


def corrected(scores: np.ndarray, measured: Mapping[Found, float]) -> np.ndarray:
    """The scores with which sums come closest to mixes as measured, each held near what it was: a ridge regression.

    One factor for all, and one for each score; errors are relative to the measured mix, so that good ones count as
    much as bad ones.

    Args:
        scores: (layers, candidates). measured: of whole mixes.
    """
    known = {mix: value for mix, value in measured.items() if value > 0 and cost_of(mix, scores) > 0}
    if not known:
        return scores
    predicted, value = np.array([cost_of(mix, scores) for mix in known]), np.array(list(known.values()))
    share = predicted / value
    scaled = scores * share.sum() / (share**2).sum()
    design = np.zeros((len(known), *scores.shape))
    for row, mix in enumerate(known):
        design[row, np.arange(len(mix)), list(mix)] = scaled[np.arange(len(mix)), list(mix)] / value[row]
    flat = design.reshape(len(known), -1)
    gram = flat @ flat.T + DOUBT * np.eye(len(known))
    factors = flat.T @ np.linalg.solve(gram, 1 - flat.sum(1))
    return scaled * np.maximum(0, 1 + factors.reshape(scores.shape))
