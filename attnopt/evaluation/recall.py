"""Tests of copying and recall in context: a model sees something once and must predict it when it comes again.

Both are teacher-forced, one forward pass per block. Copying is the repeat-copy test on held-out text; recall is the
multi-query associative recall of Arora et al. (2023, arXiv:2312.04927) put in words:
`apple => 4831 ; river => 2207 ; ...`, then every key once more, in random order, with its value.
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


def copy_items(stream: Tensor, n_items: int, passage: int, gap: int, seed: int) -> Items:
    """Blocks of a passage, the `gap` tokens that follow it in the text, and the passage again.

    Every token of the second copy but its first, which nothing announces, is a query of its own.

    Args:
        stream: (tokens,) held-out text.
        passage: tokens of the passage.

    Raises:
        ValueError: the text is shorter than a passage and its gap.
    """
    if len(stream) < passage + gap:
        raise ValueError(f"{len(stream)} tokens of text, {passage + gap} needed")
    g = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(stream) - passage - gap + 1, (n_items, 1), generator=g)
    text = stream[starts + torch.arange(passage + gap)]
    ids = torch.cat([text, text[:, :passage]], 1)
    answers = torch.full_like(ids, -1)
    answers[:, passage + gap + 1 :] = torch.arange(passage - 1)
    first = torch.zeros_like(ids, dtype=torch.bool)
    first[:, 1:passage] = True
    return Items(ids, answers, first)


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
    rows = [_recall_row(tokenizer, words, n_pairs, rng) for _ in range(n_items)]
    length = max(len(ids) for ids, _ in rows)
    lines = np.full((n_items, length), -1)
    ids = np.zeros((n_items, length), dtype=np.int64)
    for i, (row, line) in enumerate(rows):
        ids[i, : len(row)], lines[i, : len(row)] = row, line
    answers = np.where(lines >= n_pairs, lines - n_pairs, -1)
    return Items(*(torch.from_numpy(a) for a in (ids, answers, (lines >= 0) & (lines < n_pairs))))


def _recall_row(
    tokenizer: Any, words: Sequence[str], n_pairs: int, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Token ids, and for each the number of the line whose value it belongs to, or -1."""
    chosen = rng.choice(len(words), size=n_pairs, replace=False)
    values = rng.integers(VALUES.start, VALUES.stop, size=n_pairs)
    text, spans = "", []
    for i in [*range(n_pairs), *rng.permutation(n_pairs)]:
        text += f" {words[chosen[i]]} => "
        spans.append((len(text), len(text) + len(str(values[i]))))
        text += f"{values[i]} ;"
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    line_of = np.full(len(text) + 1, -1)
    for line, (start, stop) in enumerate(spans):
        line_of[start:stop] = line
    return found.input_ids, [int(line_of[start:stop].max(initial=-1)) for start, stop in found.offset_mapping]


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
