"""Tests of copying and recall in context: a model sees something once and must predict it when it comes again.

All are teacher-forced, one forward pass per block:

    copy        a passage of held-out text, the text that follows it, and the passage again (repeat-copy)
    pairs       multi-query associative recall (Arora et al. 2023, arXiv:2312.04927) put in words, as LinearSwap does:
                `apple => 4831 ; river => 2207 ; ...`, then every key once more, in random order, with its value
    phone_book  `First Last: 6512345678` a line, two of the entries again as examples, and the name of a third
                (Jelassi et al. 2024, arXiv:2402.01032)
    needle      a number in repeated filler sentences, asked for at the end, with RULER's words for it and the beginning
                of the answer (Hsieh et al. 2024, arXiv:2404.06654, its task niah_single_1)

`retention.py` puts them to students and teacher; `written.py` lets models write the answers themselves.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

VALUES = range(1000, 10000)
NUMBERS = range(10**6, 10**7)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
TASK = (
    "A special magic number is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the number afterwards."
)
NEEDLE = "One of the special magic numbers for {key} is: "
QUESTION = (
    "What is the special magic number for {key} mentioned in the provided text? "
    "The special magic number for {key} mentioned in the provided text is "
)
_WORD = re.compile(r"(?<!\S)[a-z]{4,8}(?!\S)")


@dataclass(frozen=True)
class Items:
    """Blocks with the tokens to predict in them.

    Attributes:
        ids: (items, length) token ids, each item padded on the right.
        answers: (items, length) the number of the query whose answer the token belongs to, -1 where it is no answer.
        first: (items, length) true for the answers' tokens where they stand for the first time.
    """

    ids: Tensor
    answers: Tensor
    first: Tensor


@dataclass(frozen=True)
class Score:
    """How well a model predicts the answers.

    Attributes:
        accuracy: share of queries of which every token is the arg-max.
        nll: mean negative log-likelihood of the answers' tokens, in nats.
        first_nll: the same tokens' where they stand for the first time, in nats.
        queries: how many there are.
    """

    accuracy: float
    nll: float
    first_nll: float
    queries: int


def copy_items(
    stream: Tensor, n_items: int, passage: int, gap: int, seed: int, ends: np.ndarray | None = None, cue: int = 1
) -> Items:
    """Blocks of a passage, the `gap` tokens that follow it in the text, and the passage again.

    Every token of the second copy but its first few, the cue, is a query of its own.

    Args:
        stream: (tokens,) held-out text.
        passage: tokens of the passage.
        ends: where each document of the stream ends; a passage and its gap are then of one document.
        cue: tokens of the second copy that are given: nothing announces the first, and the next few may be ambiguous.

    Raises:
        ValueError: the text is shorter than a passage and its gap.
    """
    if ends is None and len(stream) < passage + gap:
        raise ValueError(f"{len(stream)} tokens of text, {passage + gap} needed")
    possible = starts_within([len(stream)] if ends is None else ends, passage + gap)
    g = torch.Generator().manual_seed(seed)
    starts = possible[torch.randint(len(possible), (n_items, 1), generator=g)]
    text = stream[starts + torch.arange(passage + gap)]
    ids = torch.cat([text, text[:, :passage]], 1)
    answers = torch.full_like(ids, -1)
    answers[:, passage + gap + cue :] = torch.arange(passage - cue)
    first = torch.zeros_like(ids, dtype=torch.bool)
    first[:, cue:passage] = True
    return Items(ids, answers, first)


def starts_within(ends: Sequence[int] | np.ndarray, length: int) -> Tensor:
    """(n,) every place of a stream where `length` tokens begin that lie in one document; `ends`: where these end.

    Raises:
        ValueError: no document is that long.
    """
    sizes = np.diff(ends, prepend=0)
    if sizes.max(initial=0) < length:
        raise ValueError(f"no document has {length} tokens, the longest has {sizes.max(initial=0)}")
    bounds = zip(ends - sizes, ends, strict=True)
    return torch.cat([torch.arange(start, max(start, stop - length + 1)) for start, stop in bounds])


ENOUGH = 1 << 20
"""Tokens of text that words and passages are drawn from, and which are held at once."""


def words_of(texts: Iterable[str]) -> list[str]:
    """The distinct lower-case words of four to eight letters, sorted: what keys are drawn from."""
    return sorted({word for text in texts for word in _WORD.findall(text)})


def recall_items(tokenizer: Any, words: Sequence[str], n_pairs: int, n_items: int, seed: int) -> Items:
    """Lists of `n_pairs` random words with uniform values of four digits, then every key again with its value.

    The text begins with a space, so that the first key is tokenised as it is when it comes again.

    Args:
        tokenizer: a fast tokenizer of transformers; a value's tokens are those that overlap its digits.
        words: the keys to draw from.

    Raises:
        ValueError: fewer words than pairs.
    """
    if len(words) < n_pairs:
        raise ValueError(f"{len(words)} words for {n_pairs} pairs")
    rng = np.random.default_rng(seed)
    return _items_of([_recall_row(tokenizer, words, n_pairs, rng) for _ in range(n_items)])


def _recall_row(tokenizer: Any, words: Sequence[str], n_pairs: int, rng: np.random.Generator) -> "_Row":
    chosen = rng.choice(len(words), size=n_pairs, replace=False)
    values = rng.integers(VALUES.start, VALUES.stop, size=n_pairs)
    text, spans = "", []
    for line, i in enumerate([*range(n_pairs), *rng.permutation(n_pairs)]):
        text += f" {words[chosen[i]]} => "
        spans.append(_Span(len(text), len(str(values[i])), line % n_pairs, line < n_pairs))
        text += f"{values[i]} ;"
    return _row_of(tokenizer, text, spans)


def phone_book(words: Sequence[str], names: int, rng: np.random.Generator) -> dict[str, str]:
    """So many random names, two capitalised words each, with numbers of ten digits of which the first is 6 to 9."""
    first, last = (rng.choice(len(words), size=names, replace=False) for _ in range(2))
    digits = rng.integers([6] + [0] * 9, 10, size=(names, 10))
    numbers = ("".join(map(str, row)) for row in digits)
    return {f"{words[a].title()} {words[b].title()}": n for a, b, n in zip(first, last, numbers, strict=True)}


def phone_book_text(book: dict[str, str], rng: np.random.Generator) -> tuple[str, str, str]:
    """The list with two random entries again and the name of a third; that name's number; the name."""
    entries = [f"{name}: {number}" for name, number in book.items()]
    one, two, asked = rng.choice(len(entries), size=3, replace=False)
    name = [*book][asked]
    listed = "\n".join(entries)
    return f"{listed}\n\n{entries[one]}\n{entries[two]}\n\n{name}:", book[name], name


def phone_book_items(tokenizer: Any, words: Sequence[str], n_names: int, n_items: int, seed: int) -> Items:
    """Phone books of `n_names` entries, each asked for one number.

    Args:
        words: what names are made of.

    Raises:
        ValueError: fewer words than names.
    """
    if len(words) < n_names:
        raise ValueError(f"{len(words)} words for {n_names} names")
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n_items):
        text, number, name = phone_book_text(phone_book(words, n_names, rng), rng)
        listed = text.index(f"{name}: ") + len(name) + 2
        spans = [_Span(listed, len(number), 0, True), _Span(len(text) + 1, len(number), 0, False)]
        rows.append(_row_of(tokenizer, f"{text} {number}", spans))
    return _items_of(rows)


def needle_items(tokenizer: Any, words: Sequence[str], length: int, n_items: int, seed: int) -> Items:
    """A number hidden in as much filler as `length` tokens hold, at depths spread evenly, and asked for at the end.

    Args:
        words: two of them make the key.

    Raises:
        ValueError: the length does not even hold task, needle and question, or there are no two words.
    """
    if len(words) < 2:
        raise ValueError(f"{len(words)} words, 2 needed")
    rng = np.random.default_rng(seed)
    drawn = [
        (rng.choice(len(words), size=2, replace=False), int(rng.integers(NUMBERS.start, NUMBERS.stop)))
        for _ in range(n_items)
    ]
    depths = np.linspace(0, 1, n_items) if n_items > 1 else [0.5]
    return _items_of(
        [
            _needle_row(tokenizer, f"{words[a]}-{words[b]}", str(number), float(depth), length)
            for ((a, b), number), depth in zip(drawn, depths, strict=True)
        ]
    )


def _needle_row(tokenizer: Any, key: str, number: str, depth: float, length: int) -> "_Row":
    def row(fillers: int) -> _Row:
        before = round(depth * fillers)
        text = "\n".join([TASK, *[FILLER] * before, NEEDLE.format(key=key)])
        hidden = _Span(len(text), len(number), 0, True)
        text = "\n".join([f"{text}{number}.", *[FILLER] * (fillers - before), QUESTION.format(key=key)])
        return _row_of(tokenizer, text + number, [hidden, _Span(len(text), len(number), 0, False)])

    least, one = len(row(0).ids), len(row(1).ids)
    if least > length:
        raise ValueError(f"{length} tokens, {least} needed for the needle and the question alone")
    fillers = (length - least) // (one - least)
    while len((found := row(fillers)).ids) > length:
        fillers -= 1
    return found


@dataclass(frozen=True)
class _Span:
    """`length` characters of a text from `start` on that answer a query, or stand there `first`."""

    start: int
    length: int
    query: int
    first: bool


@dataclass(frozen=True)
class _Row:
    """Token ids, and for each the query that it answers and the one whose answer it is when it first comes; or -1."""

    ids: list[int]
    answers: list[int]
    first: list[int]


def _row_of(tokenizer: Any, text: str, spans: Sequence[_Span]) -> _Row:
    """A text's tokens; those that overlap a span's characters belong to it."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    marks = []
    for is_first in (False, True):
        query = np.full(len(text) + 1, -1)
        for span in spans:
            if span.first == is_first:
                query[span.start : span.start + span.length] = span.query
        marks.append([int(query[start:stop].max(initial=-1)) for start, stop in found["offset_mapping"]])
    return _Row(found["input_ids"], *marks)


def _items_of(rows: Sequence[_Row]) -> Items:
    """Rows padded on the right to the longest."""
    shape = (len(rows), max(len(row.ids) for row in rows))
    ids, answers, first = np.zeros(shape, dtype=np.int64), np.full(shape, -1), np.full(shape, -1)
    for i, row in enumerate(rows):
        for array, values in zip((ids, answers, first), (row.ids, row.answers, row.first), strict=True):
            array[i, : len(values)] = values
    return Items(*(torch.from_numpy(a) for a in (ids, answers, first >= 0)))


@torch.no_grad()
def score_items(logits_of: Callable[[Tensor], Tensor], items: Items, batch: int = 8) -> Score:
    """Score a model.

    Args:
        logits_of: takes (rows, length) ids to (rows, length, vocab) logits; the logits at t predict token t + 1.
        batch: rows per forward pass.
    """
    nll, first, queries, wrong = [], [], [], []
    for start in range(0, len(items.ids), batch):
        part = slice(start, start + batch)
        ids, answers, is_first = items.ids[part, 1:], items.answers[part, 1:], items.first[part, 1:]
        logits = logits_of(items.ids[part])[:, :-1]
        asked = answers >= 0
        picked = logits[asked].float()
        nll.append(F.cross_entropy(picked, ids[asked], reduction="none"))
        first.append(F.cross_entropy(logits[is_first].float(), ids[is_first], reduction="none"))
        wrong.append(picked.argmax(-1) != ids[asked])
        row = torch.arange(start, start + len(ids))[:, None].expand_as(answers)
        queries.append(torch.stack([row[asked], answers[asked]], 1))
    _, query = torch.cat(queries).unique(dim=0, return_inverse=True)
    misses = torch.bincount(query, weights=torch.cat(wrong).double())
    return Score((misses == 0).double().mean().item(), _mean(nll), _mean(first), len(misses))


def _mean(parts: list[Tensor]) -> float:
    return torch.cat(parts).double().mean().item()
