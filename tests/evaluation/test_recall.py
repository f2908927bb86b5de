"""Copying and recall in context: the items are what they say, and planted models get the scores that they deserve."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attnopt.evaluation.recall import (
    FILLER,
    copy_items,
    needle_items,
    phone_book_items,
    recall_items,
    score_items,
    starts_within,
    words_of,
)

WORDS = ["apple", "river", "stone", "cloud", "table", "grape", "lemon", "otter", "eagle", "maple", "cedar", "brick"]
VOCAB = 600


@pytest.fixture(scope="module")
def stream() -> Tensor:
    return torch.randint(1, VOCAB, (5000,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tokenizer():
    from attnopt.tools.pretrain.text import train_tokenizer

    rng = random.Random(0)
    text = " ".join(f"{word} {rng.randint(1000, 9999)} => ;" for word in WORDS * 20)
    return train_tokenizer([text], vocab=300, length=4096)


def copier(ids: Tensor, order: int = 6) -> Tensor:
    """Logits of a model that looks up the longest context of up to `order` tokens that has been seen before."""
    logits = torch.zeros(*ids.shape, VOCAB)
    for b, row in enumerate(ids.tolist()):
        for t in range(len(row)):
            for n in range(min(order, t), 0, -1):
                seen = [s for s in range(n - 1, t) if row[s - n + 1 : s + 1] == row[t - n + 1 : t + 1]]
                if seen:
                    logits[b, t, row[seen[0] + 1]] = 50.0
                    break
    return logits


def unigram(ids: Tensor) -> Tensor:
    return F.one_hot(torch.tensor(7), VOCAB).float().expand(*ids.shape, VOCAB)


def oracle(ids: Tensor) -> Tensor:
    return 50.0 * F.one_hot(ids.roll(-1, 1), VOCAB).float()


@pytest.mark.parametrize("gap", [0, 1, 100])
def test_the_second_copy_equals_the_first_at_the_gap(stream: Tensor, gap: int) -> None:
    items = copy_items(stream, 5, passage=12, gap=gap, seed=0)
    assert items.ids.shape == (5, 24 + gap)
    assert torch.equal(items.ids[:, :12], items.ids[:, 12 + gap :])
    text = stream.unfold(0, 12 + gap, 1)
    assert all((text == row[: 12 + gap]).all(1).any() for row in items.ids)
    asked = items.answers >= 0
    assert asked.sum(1).tolist() == [11] * 5
    assert torch.equal(items.ids[asked], items.ids[items.first])
    assert not asked[:, : 13 + gap].any()
    assert not torch.equal(items.ids, copy_items(stream, 5, passage=12, gap=gap, seed=1).ids)


def test_text_that_is_too_short_for_a_passage_is_refused(stream: Tensor) -> None:
    with pytest.raises(ValueError, match=r"20 tokens of text, 21 needed"):
        copy_items(stream[:20], 1, passage=12, gap=9, seed=0)


def test_a_passage_and_its_gap_lie_in_one_document_where_the_ends_are_told(stream: Tensor) -> None:
    ends = np.array([10, 40, 45, 80])
    expected = [s for s in range(80) if any(a <= s and s + 25 <= b for a, b in [(0, 10), (10, 40), (40, 45), (45, 80)])]
    assert starts_within(ends, 25).tolist() == expected
    text = stream[:80].unfold(0, 25, 1)
    items = copy_items(stream[:80], 40, passage=20, gap=5, seed=0, ends=ends)
    starts = {int((text == row[:25]).all(1).nonzero()[0, 0]) for row in items.ids}
    assert starts <= set(expected)
    with pytest.raises(ValueError, match="no document has 36 tokens, the longest has 35"):
        copy_items(stream[:80], 1, passage=20, gap=16, seed=0, ends=ends)


def test_every_key_is_asked_once_with_its_value(tokenizer) -> None:
    items = recall_items(tokenizer, WORDS, n_pairs=9, n_items=4, seed=0)
    for ids, answers, first in zip(items.ids, items.answers, items.first, strict=True):
        lines = [line.split(" => ") for line in tokenizer.decode(ids[ids != 0]).split(" ;") if line]
        assert len(lines) == 18
        assert all(1000 <= int(value) <= 9999 for _, value in lines)
        assert sorted(lines[:9]) == sorted(lines[9:])
        assert len({key for key, _ in lines[:9]}) == 9
        assert lines[:9] != lines[9:]
        values = [tokenizer.decode(ids[answers == i]).strip() for i in range(9)]
        assert values == [value for _, value in lines[9:]]
        assert tokenizer.decode(ids[first]).split() == [value for _, value in lines[:9]]


def test_the_text_of_a_list_is_tokenised_as_a_whole(tokenizer) -> None:
    ids = recall_items(tokenizer, WORDS, n_pairs=5, n_items=1, seed=3).ids[0]
    assert tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False) == ids.tolist()


def test_more_pairs_than_words_are_refused(tokenizer) -> None:
    with pytest.raises(ValueError, match=r"12 words for 13 pairs"):
        recall_items(tokenizer, WORDS, n_pairs=13, n_items=1, seed=0)


def test_a_phone_book_asks_for_a_third_after_two_examples(tokenizer) -> None:
    items = phone_book_items(tokenizer, WORDS, n_names=6, n_items=5, seed=0)
    third = []
    for ids, answers, first in zip(items.ids, items.answers, items.first, strict=True):
        listed, shown, asked = tokenizer.decode(ids[ids != 0]).split("\n\n")
        book = [line.split(": ") for line in listed.split("\n")]
        assert len({name for name, _ in book}) == 6
        assert all(len(number) == 10 and number[0] in "6789" for _, number in book)
        assert all(part.istitle() and part.lower() in WORDS for name, _ in book for part in name.split())
        name, number = asked.split(": ")
        assert [name, number] in book
        shots = [line.split(": ") for line in shown.split("\n")]
        assert len(shots) == 2
        assert all(shot in book for shot in shots)
        assert [name, number] not in shots
        for mask in (answers == 0, first):
            assert tokenizer.decode(ids[mask]).strip() == number
        assert first.nonzero().max() < (answers == 0).nonzero().min()
        assert (answers >= 0).nonzero().max() == (ids != 0).nonzero().max()
        third.append(book.index([name, number]))
    assert len(set(third)) > 1
    with pytest.raises(ValueError, match="12 words for 13 names"):
        phone_book_items(tokenizer, WORDS, n_names=13, n_items=1, seed=0)


def test_a_needle_lies_at_depths_spread_evenly_and_is_asked_for_with_the_answers_beginning(tokenizer) -> None:
    items = needle_items(tokenizer, WORDS, length=2500, n_items=5, seed=0)
    one = len(tokenizer.encode("\n" + FILLER))
    assert 2500 - 2 * one < items.ids.shape[1] <= 2500
    for i, (ids, answers, first) in enumerate(zip(items.ids, items.answers, items.first, strict=True)):
        lines = tokenizer.decode(ids[ids != 0]).split("\n")
        (depth,) = [n for n, line in enumerate(lines[1:-1]) if line != FILLER]
        assert depth == round(i / 4 * (len(lines) - 3))
        key, number = lines[1 + depth].removeprefix("One of the special magic numbers for ")[:-1].split(" is: ")
        assert set(key.split("-")) <= set(WORDS)
        assert 10**6 <= int(number) < 10**7
        assert lines[-1].endswith(f"? The special magic number for {key} mentioned in the provided text is {number}")
        for mask in (answers == 0, first):
            assert tokenizer.decode(ids[mask]).strip(" .") == number
    with pytest.raises(ValueError, match=r"40 tokens, \d+ needed for the needle and the question alone"):
        needle_items(tokenizer, WORDS, length=40, n_items=1, seed=0)
    with pytest.raises(ValueError, match="1 words, 2 needed"):
        needle_items(tokenizer, WORDS[:1], length=900, n_items=1, seed=0)


def test_words_are_lower_case_whole_and_of_four_to_eight_letters() -> None:
    found = words_of(["the river, stone Apple cloud-like otters", "tower otters extraordinarily"])
    assert found == ["otters", "stone", "tower"]


@pytest.mark.parametrize(("model", "least", "most"), [(copier, 1.0, 1.0), (oracle, 1.0, 1.0), (unigram, 0.0, 0.02)])
def test_a_copier_copies_and_a_unigram_model_does_not(
    stream: Tensor, model: Callable[[Tensor], Tensor], least: float, most: float
) -> None:
    once = stream.unique()[torch.randperm(500, generator=torch.Generator().manual_seed(0))]
    score = score_items(model, copy_items(once, 6, passage=16, gap=8, seed=0), batch=4)
    assert least <= score.accuracy <= most
    assert score.queries == 6 * 15


def test_recall_counts_a_query_only_where_every_token_of_the_value_is_right(tokenizer) -> None:
    items = recall_items(tokenizer, WORDS, n_pairs=6, n_items=3, seed=0)
    assert score_items(oracle, items).accuracy == 1.0
    assert score_items(unigram, items).accuracy == 0.0

    def wrong_once(ids: Tensor) -> Tensor:
        logits = oracle(ids)
        last = int((items.answers[0] == 2).nonzero()[-1])
        logits[0, last - 1] = unigram(ids)[0, 0] * 99
        return logits

    score = score_items(wrong_once, items)
    assert score.queries == 18
    assert score.accuracy == pytest.approx(17 / 18)


def test_the_copier_recalls_lists_by_their_keys(tokenizer) -> None:
    assert score_items(copier, recall_items(tokenizer, WORDS, n_pairs=6, n_items=3, seed=0)).accuracy == 1.0


def test_losses_are_those_of_the_answers_and_of_their_first_occurrence(stream: Tensor) -> None:
    items = copy_items(stream, 3, passage=8, gap=2, seed=0)
    torch.manual_seed(0)
    table = torch.randn(VOCAB, VOCAB)
    score = score_items(lambda ids: table[ids], items, batch=2)
    logp = table.log_softmax(1)
    second = [-logp[row[t - 1], row[t]] for row in items.ids for t in range(11, 18)]
    first = [-logp[row[t - 1], row[t]] for row in items.ids for t in range(1, 8)]
    assert score.nll == pytest.approx(torch.stack(second).mean().item(), rel=1e-5)
    assert score.first_nll == pytest.approx(torch.stack(first).mean().item(), rel=1e-5)


def test_the_cue_is_given_and_not_asked_for(stream: Tensor) -> None:
    items = copy_items(stream, 3, passage=8, gap=5, seed=0, cue=3)
    asked = (items.answers >= 0).nonzero()[:, 1].reshape(3, -1)
    assert (asked == torch.arange(8 + 5 + 3, 8 + 5 + 8)).all()
    assert items.first.nonzero()[:, 1].reshape(3, -1).tolist() == [[3, 4, 5, 6, 7]] * 3
