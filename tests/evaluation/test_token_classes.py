"""Classes of predicted tokens, by hand."""

import numpy as np
import pytest

from attnopt.evaluation import token_classes
from attnopt.statistics import mean_and_error

#                   0  1  2  3  4  5  6  7
BLOCK = np.array([[5, 6, 7, 5, 6, 6, 8, 7]])


def named(classes: token_classes.Classes, row: int = 0) -> list[str]:
    return [classes.names[i] for i in classes.labels[row]]


def test_context_by_hand() -> None:
    new, token, pair = "new", "token seen before", "pair seen before"
    # predicted:                                     6    7    5      6     6      8    7
    assert named(token_classes.by_context(BLOCK)) == [new, new, token, pair, token, new, token]


def test_a_pair_counts_where_it_overlaps_itself_and_blocks_know_nothing_of_each_other() -> None:
    found = token_classes.by_context(np.array([[1, 1, 1], [2, 1, 1]]))
    assert named(found, 0) == ["token seen before", "pair seen before"]
    assert named(found, 1) == ["new", "token seen before"]


def test_frequency_by_hand() -> None:
    """Tokens 0 to 3 stand 1, 2, 3 and 6 times in the train split, 4 never."""
    train = np.array([[0, 1, 1, 2, 2, 2], [3, 3, 3, 3, 3, 3]])
    found = token_classes.by_frequency(np.array([[3, 0, 1, 2, 3, 4]]), train)
    assert found.names == (
        "rare: under 2 times",
        "uncommon: 2 to 3 times",
        "common: 4 to 5 times",
        "frequent: 6 times or more",
    )
    assert [name.split(":")[0] for name in named(found)] == ["rare", "uncommon", "uncommon", "frequent", "rare"]


def test_rows_are_the_means_of_their_tokens_and_leave_no_token_out() -> None:
    rng = np.random.default_rng(0)
    tokens = {name: rng.random((4, 7), np.float32) for name in ("kl_forward", "ce", "teacher_ce")}
    labels = np.array([[0, 0, 0, 0, 2, 2, 2], [0] * 7, [0, 2] * 3 + [0], [2] * 7])
    rows = token_classes.class_rows(tokens, {"toy": token_classes.Classes(("a", "nobody's", "c"), labels)})
    assert [(row.by, row.label, row.tokens) for row in rows] == [("toy", "a", 15), ("toy", "c", 13)]
    for row, i in zip(rows, (0, 2), strict=True):
        assert row.kl == pytest.approx(tokens["kl_forward"][labels == i].mean())
        assert row.ce == pytest.approx(tokens["ce"][labels == i].mean())
        assert row.teacher_ce == pytest.approx(tokens["teacher_ce"][labels == i].mean())
        assert row.kl_se == mean_and_error(tokens["kl_forward"], labels == i)[1]


def test_the_error_over_blocks_is_the_spread_of_the_mean_when_blocks_are_drawn_anew() -> None:
    """Blocks with their own level and their own number of chosen tokens; without a choice, the textbook's formula."""
    rng = np.random.default_rng(0)

    def drawn() -> tuple[np.ndarray, np.ndarray]:
        level = rng.normal(3, 1, (60, 1))
        return rng.normal(level, 0.5, (60, 20)), rng.random((60, 20)) < rng.random((60, 1))

    found = [mean_and_error(*drawn()) for _ in range(300)]
    means, errors = (np.array(part, dtype=float) for part in zip(*found, strict=True))
    assert np.median(errors) == pytest.approx(means.std(), rel=0.15)
    values, _ = drawn()
    assert mean_and_error(values)[1] == pytest.approx(values.mean(1).std(ddof=1) / 60**0.5)
    assert mean_and_error(values[:1])[1] is None
