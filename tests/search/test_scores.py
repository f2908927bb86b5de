"""Scores moved to what was measured whole."""

import numpy as np
import pytest

from attnopt.search.scores import Scores, corrected
from attnopt.search.solve import cost_of

RNG = np.random.default_rng(0)
SINGLE = RNG.gamma(2.0, 0.02, (5, 4)) * (np.arange(4) > 0)


def mixes(count: int, seed: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(row) for row in rng.integers(0, 4, (count, 5)).tolist()]


def test_a_common_factor_is_found_and_softmax_stays_at_nothing() -> None:
    measured = {mix: 1.7 * cost_of(mix, SINGLE) for mix in mixes(12, 1)}
    np.testing.assert_allclose(corrected(SINGLE, measured), 1.7 * SINGLE, rtol=1e-9)


def test_what_was_measured_moves_the_scores_that_it_is_about() -> None:
    truth = SINGLE * (1 + 0.8 * (np.arange(5) == 2)[:, None])
    seen = {mix: cost_of(mix, truth) for mix in mixes(25, 2)}
    found, unseen = corrected(SINGLE, seen), mixes(40, 3)
    off = [np.mean([abs(cost_of(m, s) - cost_of(m, truth)) for m in unseen]) for s in (SINGLE, found)]
    assert off[1] < 0.4 * off[0]
    ratio = found[:, 1:] / SINGLE[:, 1:]
    assert ratio[2].min() > np.delete(ratio, 2, 0).max()


def test_nothing_measured_changes_nothing() -> None:
    assert np.array_equal(corrected(SINGLE, {}), SINGLE)
    assert np.array_equal(corrected(SINGLE, {(0,) * 5: 0.0}), SINGLE)


def test_a_total_weighs_recall() -> None:
    scores = Scores(np.full((2, 2), 1.0), np.full((2, 2), 3.0))
    assert scores.total(0.5).max() == pytest.approx(2.5)
