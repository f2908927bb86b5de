"""Quality at length against slow loops: pieces, positions, gaps and their errors; and planted students."""

import math

import numpy as np
import pytest
from planted import HEAD, Planted, documents_of

from attnopt.core.errors import UserError
from attnopt.corpus.blocks import Documents
from attnopt.evaluation.lengths import (
    AtLength,
    Pieces,
    bounds_of,
    check_lengths,
    cut_pieces,
    gap_bounds,
    holds_to,
    pair_gaps,
    summarize_length,
)
from attnopt.evaluation.params import EvaluateParams
from attnopt.records.evaluate import LengthQuality
from attnopt.statistics import student_t


def test_pieces_are_contiguous_parts_of_one_document_and_do_not_overlap() -> None:
    documents = Documents(np.arange(1000), np.array([150, 190, 500, 1000]))
    pieces = cut_pieces(documents, 100, most=16)
    assert pieces.document.tolist() == [0, 2, 2, 2, 3, 3, 3, 3, 3]
    assert pieces.ids[:, 0].tolist() == [0, 190, 290, 390, 500, 600, 700, 800, 900]
    assert (np.diff(pieces.ids, axis=1) == 1).all()


def test_few_pieces_are_spread_over_documents_before_a_document_gives_two() -> None:
    documents = Documents(np.arange(1000), np.array([300, 600, 650, 1000]))
    assert cut_pieces(documents, 100, most=3).document.tolist() == [0, 1, 3]
    assert cut_pieces(documents, 100, most=5).document.tolist() == [0, 0, 1, 3, 3]
    many = Documents(np.arange(1000), np.arange(10, 1001, 10))
    assert cut_pieces(many, 10, most=4).document.tolist() == [0, 33, 66, 99]


def test_lengths_that_cannot_be_had_are_refused() -> None:
    documents = documents_of([100, 300])
    assert len(check_lengths(EvaluateParams(lengths=[300]), documents, 300)) == 1
    for positions, expected in {300: "evaluate.lengths: 301 exceeds the teacher's 300 positions",
                                999: "no document of the test split has 301 tokens, the longest has 300"}.items():  # fmt: skip
        with pytest.raises(UserError, match=expected) as caught:
            check_lengths(EvaluateParams(lengths=[64, 301]), documents, positions)
        assert "\n" not in str(caught.value)


def test_bins_are_powers_of_two_and_end_at_the_length() -> None:
    assert bounds_of(1024) == [(0, 64), (64, 128), (128, 256), (256, 512), (512, 1024)]
    assert bounds_of(1000)[-1] == (512, 1000)
    assert bounds_of(64) == [(0, 64)]
    assert bounds_of(40) == [(0, 40)]
    assert gap_bounds(64) == [(1, 16), (16, 32), (32, None)]
    assert gap_bounds(10) == [(1, None)]


def slow_gap(row: list[int], t: int) -> int:
    """How many tokens before t the pair (row[t - 1], row[t]) last stood, 0 for never."""
    for back in range(1, t):
        if (row[t - back - 1], row[t - back]) == (row[t - 1], row[t]):
            return back
    return 0


@pytest.mark.parametrize("letters", [1, 2, 5, 30])
def test_gaps_are_those_of_the_slow_loop(letters: int) -> None:
    ids = np.random.default_rng(letters).integers(letters, size=(4, 90))
    expected = [[slow_gap(row, t) for t in range(1, 90)] for row in ids.tolist()]
    assert pair_gaps(ids).tolist() == expected


def random_measures(n: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    kinds = ("kl_forward", "ce", "teacher_ce")
    return {k: rng.exponential(size=n * (length - 1)).astype(np.float32) for k in kinds} | {
        "top1_agreement": rng.integers(2, size=n * (length - 1)).astype(np.float32)
    }


def slow_mean(tokens: list[tuple[int, float]], documents: int) -> tuple[float, float]:
    """Mean over tokens (document, value), and the error of that ratio of sums over documents."""
    mean = sum(value for _, value in tokens) / len(tokens)
    off = [sum(value - mean for d, value in tokens if d == document) for document in range(documents)]
    return mean, math.sqrt(documents / (documents - 1) * sum(x * x for x in off)) / len(tokens)


def test_every_bin_and_gap_is_that_of_the_slow_loop() -> None:
    length, document = 150, [0, 0, 1, 2, 2, 2]
    ids = np.random.default_rng(0).integers(9, size=(6, length))
    measures = random_measures(6, length)
    found = summarize_length(measures, Pieces(ids, np.array(document)), pair_gaps(ids))
    table = {name: values.reshape(6, -1) for name, values in measures.items()}

    def chosen(where) -> list[tuple[int, int]]:
        return [(i, t) for i in range(6) for t in range(1, length) if where(ids[i].tolist(), t)]

    def check(row, places: list[tuple[int, int]]) -> None:
        assert row.tokens == len(places)
        kl, error = slow_mean([(document[i], float(table["kl_forward"][i, t - 1])) for i, t in places], 3)
        assert row.kl_forward == pytest.approx(kl, rel=1e-5)
        assert row.kl_forward_se == pytest.approx(error, rel=1e-5)
        for name in ("ce", "teacher_ce", "top1_agreement"):
            if name in type(row).model_fields:
                mean = sum(float(table[name][i, t - 1]) for i, t in places) / len(places)
                assert getattr(row, name) == pytest.approx(mean, rel=1e-5)

    assert [(b.start, b.stop, b.blocks) for b in found.positions] == [(0, 64, 3), (64, 128, 3), (128, 150, 3)]
    for row in found.positions:
        places = chosen(lambda _, t, row=row: row.start <= t < row.stop)
        check(row, places)
        more = [(document[i], float(table["ce"][i, t - 1] - table["teacher_ce"][i, t - 1])) for i, t in places]
        mean, error = slow_mean(more, 3)
        bounds = [math.exp(mean + side * float(student_t(2)) * error) for side in (0, -1, 1)]
        assert [row.ppl_ratio, row.ppl_ratio_low, row.ppl_ratio_high] == pytest.approx(bounds, rel=1e-5)
    assert found.gaps[0].low == 0
    for row in found.gaps:
        inside = (0, 1) if row.low == 0 else (row.low, row.high or length)
        check(row, chosen(lambda ids, t, inside=inside: inside[0] <= slow_gap(ids, t) < inside[1]))
    assert sum(row.tokens for row in found.gaps) == sum(row.tokens for row in found.positions) == found.tokens
    assert (found.blocks, found.tokens) == (6, 6 * (length - 1))


def test_one_document_has_no_errors() -> None:
    ids = np.zeros((2, 20), int)
    found = summarize_length(random_measures(2, 20), Pieces(ids, np.array([0, 0])), pair_gaps(ids))
    assert found.kl_forward_se is found.ppl_ratio_low is found.positions[0].ppl_ratio_high is None


def bins(*kl: float):
    made = summarize_length(random_measures(1, 20), Pieces(np.zeros((1, 20), int), np.zeros(1, int)), np.zeros((1, 19)))
    return [made.positions[0].model_copy(update={"stop": 64 << i, "kl_forward": x}) for i, x in enumerate(kl)]


def test_quality_holds_to_the_last_bin_before_the_first_that_is_off() -> None:
    assert holds_to(bins(0.1, 0.2, 0.15, 0.21, 0.1)) == 256
    assert holds_to(bins(0.1, 0.1)) == 128
    assert holds_to(bins(0.1, 0.3, 0.1)) is None
    assert holds_to(bins(0.1)) is None
    assert holds_to(bins(1e-9, 1e-6, 0.1)) == 128


def repeating(gap: int) -> Documents:
    """Two documents in which 40 tokens come again after `gap` others; no other token comes twice."""
    rows = [np.random.default_rng(i).permutation(600)[: 40 + gap] for i in range(2)]
    return Documents(
        np.concatenate([np.concatenate([row, row[:40]]) for row in rows]), np.array([80 + gap, 160 + 2 * gap])
    )


def quality(student: Planted, documents: Documents, length: int) -> LengthQuality:
    params = EvaluateParams(lengths=[length], batch=2)
    (pieces,) = check_lengths(params, documents, 1000)
    return AtLength(Planted(), HEAD, pieces, params, block=32).of(student, HEAD, "planted")


def test_a_student_that_equals_the_teacher_is_nowhere_off() -> None:
    found = quality(Planted(), repeating(gap=60), 140)
    assert [row.kl_forward for row in (*found.positions, *found.gaps, found)] == [0] * 6
    assert found.ppl_ratio == found.ppl_ratio_low == found.ppl_ratio_high == found.top1_agreement == 1
    assert found.holds_to == 140


def test_a_student_that_forgets_loses_the_gaps_beyond_its_memory_and_no_other() -> None:
    ids = np.concatenate([repeating(gap=60).tokens.reshape(2, 140), repeating(gap=0).tokens.reshape(2, 80)], 1)
    documents = Documents(ids.ravel(), np.array([220, 440]))
    found = {row.low: row for row in quality(Planted(memory=50), documents, 220).gaps}
    assert found[64].kl_forward > 5  # a gap of 100
    assert found[64].top1_agreement < 0.1
    assert found[32].kl_forward == 0  # of 40
    assert found[32].top1_agreement == 1
