"""The blocks to train on: prose, prose with repeated passages, repeated runs of random tokens, key-value lists.

A token's loss counts unless the token is unpredictable by construction: the first token after a jump in the text, the
first copy of random tokens, a list's keys, and its values where they are defined.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnopt.evaluation.recall import VALUES, words_of
from attnopt.tools.pretrain.text import POSITIONS, token_stream

MIX = {"prose": 0.54, "passages": 0.22, "runs": 0.06, "lists": 0.18}
HOME = 0.5
"""Share of the text that is drawn from the enwiki sample's articles alone: its valid ones are what is measured on."""
SHORTEST_COPY, SHORTEST_RUN, SMALLEST_ALPHABET = 16, 8, 16
FEWEST_PAIRS = 2


@dataclass(frozen=True)
class Source:
    """What blocks are made of: the tokens of the training text, of which the first `home` are the enwiki sample's, and
    the pieces of key-value lists as token ids."""

    stream: np.ndarray
    home: int
    keys: list[list[int]]
    values: list[list[int]]
    arrow: list[int]
    end: list[int]
    vocab: int


@dataclass(frozen=True)
class Batch:
    """(rows, length) each: tokens, whether their loss counts, their positions, and where the token that follows stood
    before, -1 where it did not."""

    ids: Tensor
    counts: Tensor
    positions: Tensor
    sources: Tensor


class Row:
    """A block in the making: its token ids, and for each whether its loss counts and where it was copied from."""

    def __init__(self, length: int):
        self.length = length
        self.ids: list[int] = []
        self.counts: list[bool] = []
        self.origins: list[int] = []

    @property
    def room(self) -> int:
        return self.length - len(self.ids)

    def add(self, ids: Any, counts: bool = True, jump: bool = False, origin: int | None = None) -> None:
        """Append tokens; with `jump` the first of them does not count, for nothing announces it.

        Args:
            origin: where in the row the tokens that these are a copy of begin.
        """
        self.ids += [int(i) for i in ids]
        announced = [not (jump and i == 0) for i in range(len(ids))]
        self.counts += [counts and known for known in announced]
        self.origins += [-1 if origin is None or not known else origin + i for i, known in enumerate(announced)]


def source_of(tokenizer: Any, texts: list[str], home: int) -> Source:
    """The training text's tokens; keys are its words, values the numbers of four digits, each behind a space.

    Args:
        home: how many of the texts, from the first on, are the enwiki sample's.
    """
    pieces = [[f" {word}" for word in words_of(texts)], [f" {value}" for value in VALUES], [" =>", " ;"]]
    keys, values, (arrow, end) = (tokenizer(p, add_special_tokens=False).input_ids for p in pieces)
    stream, first = token_stream(tokenizer, texts).numpy(), len(token_stream(tokenizer, texts[:home]))
    return Source(stream, first, keys, values, arrow, end, len(tokenizer))


def batch_of_step(source: Source, seed: int, step: int, rows: int, length: int) -> Batch:
    """The batch of one step, a function of (seed, step) alone; each row's kind is drawn from MIX.

    Half of the rows stand at positions 0, 1, ...; in the others all but the first token are shifted by any number of
    positions that leaves room, so that short blocks teach all of the positions and the first one begins every row.
    """
    rng = np.random.default_rng([seed, step])
    kinds = rng.choice(list(MIX), size=rows, p=list(MIX.values()))
    made = [MAKERS[kind](source, rng, length) for kind in kinds]
    shift = rng.integers(0, POSITIONS - length + 1, size=(rows, 1)) * (rng.random((rows, 1)) < 0.5)
    positions = np.arange(length) + shift * (np.arange(length) > 0)
    ids, counts = [row.ids for row in made], [row.counts for row in made]
    sources = torch.tensor([[*row.origins[1:], -1] for row in made])
    return Batch(torch.tensor(ids), torch.tensor(counts), torch.from_numpy(positions), sources)


def prose(source: Source, rng: np.random.Generator, length: int) -> Row:
    """A block of the training text."""
    row = Row(length)
    row.add(_text(source, rng, length))
    return row


def passages(source: Source, rng: np.random.Generator, length: int) -> Row:
    """Passages of the text, each followed by the text that follows it (0 to many tokens) and by its second copy."""
    row = Row(length)
    while row.room >= 2 * SHORTEST_COPY:
        n = _log_uniform(rng, SHORTEST_COPY, min(row.room // 2, max(SHORTEST_COPY, length // 4)))
        gap = int(rng.integers(0, row.room - 2 * n + 1))
        text = _text(source, rng, n + gap)
        start = len(row.ids)
        row.add(text, jump=True)
        row.add(text[:n], jump=True, origin=start)
    row.add(_text(source, rng, row.room), jump=True)
    return row


def runs(source: Source, rng: np.random.Generator, length: int) -> Row:
    """Runs of random tokens, each followed by its copy; small alphabets make single tokens ambiguous as a cue."""
    row = Row(length)
    while row.room >= 2 * SHORTEST_RUN:
        n = _log_uniform(rng, SHORTEST_RUN, row.room // 2)
        alphabet = rng.integers(1, source.vocab, size=_log_uniform(rng, SMALLEST_ALPHABET, source.vocab))
        run = rng.choice(alphabet, size=n)
        start = len(row.ids)
        row.add(run, counts=False)
        row.add(run, jump=True, origin=start)
    row.add(_text(source, rng, row.room), jump=True)
    return row


def lists(source: Source, rng: np.random.Generator, length: int) -> Row:
    """Key-value lists (`apple => 4831 ; river => 2207 ;`), each followed by all of its keys in another order."""
    row = Row(length)
    keys = iter(rng.permutation(len(source.keys)))
    while len(pairs := list(_pairs(source, rng, keys, row.room // 2))) >= FEWEST_PAIRS:
        n = int(rng.integers(FEWEST_PAIRS, len(pairs) + 1))
        defined = [_line(row, source, key, value, None) for key, value in pairs[:n]]
        for i in rng.permutation(n):
            key, value = pairs[i]
            _line(row, source, key, value, defined[i])
    row.add(_text(source, rng, row.room), jump=True)
    return row


MAKERS: dict[str, Callable[[Source, np.random.Generator, int], Row]] = {
    "prose": prose, "passages": passages, "runs": runs, "lists": lists,
}  # fmt: skip


def _pairs(source: Source, rng: np.random.Generator, keys: Any, room: int) -> Any:
    """Pairs of fresh keys and uniform values, as many as fit into `room` tokens."""
    for index in keys:
        key, value = source.keys[index], source.values[rng.integers(len(source.values))]
        room -= len(key) + len(source.arrow) + len(value) + len(source.end)
        if room < 0:
            return
        yield key, value


def _line(row: Row, source: Source, key: list[int], value: list[int], origin: int | None) -> int:
    """Append a line, whose value counts where it was given at `origin` before; returns where its value begins."""
    row.add(key, counts=False)
    row.add(source.arrow)
    start = len(row.ids)
    row.add(value, counts=origin is not None, origin=origin)
    row.add(source.end)
    return start


def _text(source: Source, rng: np.random.Generator, n: int) -> np.ndarray:
    stop = source.home if rng.random() < HOME else len(source.stream)
    start = int(rng.integers(max(1, stop - n + 1)))
    return source.stream[start : start + n]


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    """A whole number from low to high, each octave as likely as any other."""
    return min(high, int(np.exp(rng.uniform(np.log(low), np.log(high + 1)))))
