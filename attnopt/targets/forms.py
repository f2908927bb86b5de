"""The forms in which the teacher's outputs are cached (`teacher.logits`), each a way to disk and back to a loss.

    hidden    2 C bytes a token     the final hidden states in float16: with the head they give the exact distribution
    dense     2 V                   log-probabilities in float16
    topk      4 K + 2               the K likeliest tokens, their probabilities, and what is left for all others
    sampled   3 a different token   N draws (arXiv:2503.16870): the tokens, how often each came; and the entropy, 4

(Two bytes more a token where V exceeds 2^16.) `online` caches nothing.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from attnopt.core.device import on_device, token_ids
from attnopt.core.errors import UserError
from attnopt.targets.store import Block
from attnopt.targets.targets import DenseTargets, SparseTargets, Targets
from attnopt.teacher.head import Head, head_of, hidden_states
from attnopt.teacher.params import TeacherParams
from attnopt.teacher.positions import positions_of


class Form(Protocol):
    bytes: int
    """Per token, at most."""

    def encode(self, hidden: Tensor, head: Head, index: int) -> Block:
        """What is kept of block number `index`, from its final hidden states (T, C)."""


class TargetForm(Form, Protocol):
    def decode(self, blocks: list[Block], device: torch.device) -> Targets:
        """What a loss needs of all positions of some blocks that predict a token."""


def _log_p(hidden: Tensor, head: Head) -> Tensor:
    """(T - 1, V) of a block's final hidden states (T, C)."""
    return torch.log_softmax(head(hidden[:-1]).float(), -1)


def _id_type(vocab: int) -> type:
    return np.uint16 if vocab <= 2**16 else np.uint32


def _floats(array: np.ndarray, device: torch.device) -> Tensor:
    return on_device(array.astype(np.float32), device)


class Hidden:
    """The final hidden states of all T positions."""

    def __init__(self, width: int):
        self.bytes = 2 * width

    def encode(self, hidden: Tensor, head: Head, index: int) -> Block:
        """Raises UserError where a value does not fit float16."""
        if hidden.abs().max() > torch.finfo(torch.float16).max:
            raise UserError("teacher.logits hidden: hidden states exceed float16; set teacher.logits to online")
        return {"hidden": hidden.half().cpu().numpy()}


class Dense:
    """All log-probabilities of the T - 1 positions that predict a token."""

    def __init__(self, vocab: int):
        self.bytes = 2 * vocab

    def encode(self, hidden: Tensor, head: Head, index: int) -> Block:
        return {"log_p": _log_p(hidden, head).half().cpu().numpy()}

    def decode(self, blocks: list[Block], device: torch.device) -> DenseTargets:
        return DenseTargets(on_device(np.concatenate([block["log_p"] for block in blocks]), device))


class TopK:
    """The k likeliest tokens, and the probability of all others in one."""

    def __init__(self, k: int, vocab: int):
        if k >= vocab:
            raise UserError(f"teacher.topk: {k} is not below the vocabulary's {vocab}; set teacher.logits to dense")
        self.record = np.dtype([("id", _id_type(vocab), (k,)), ("p", np.float16, (k,)), ("tail", np.float16)])
        self.bytes = self.record.itemsize

    def encode(self, hidden: Tensor, head: Head, index: int) -> Block:
        p, ids = _log_p(hidden, head).exp().topk(self.record["id"].shape[0])
        kept = np.zeros(len(p), self.record)
        kept["id"], kept["p"] = ids.cpu().numpy(), p.cpu().numpy()
        kept["tail"] = (1 - p.double().sum(-1)).clamp(min=0).cpu().numpy()
        return {"top": kept}

    def decode(self, blocks: list[Block], device: torch.device) -> SparseTargets:
        top = np.concatenate([block["top"] for block in blocks])
        p, tail = _floats(top["p"], device), _floats(top["tail"], device)
        mass = p.sum(-1) + tail
        return SparseTargets(token_ids(top["id"], device), p / mass[:, None], tail / mass)


class Sampled:
    """Draws from the distribution: different tokens and their counts, packed, and the teacher's entropy."""

    def __init__(self, draws: int, vocab: int):
        self.draws = draws
        self.entry = np.dtype([("id", _id_type(vocab)), ("count", np.uint8 if draws < 2**8 else np.uint16)])
        self.row = np.dtype([("different", np.uint16), ("entropy", np.float16)])
        self.bytes = self.row.itemsize + draws * self.entry.itemsize

    def encode(self, hidden: Tensor, head: Head, index: int) -> Block:
        log_p = _log_p(hidden, head)
        generator = torch.Generator(log_p.device).manual_seed(index)
        drawn = log_p.exp().multinomial(self.draws, replacement=True, generator=generator).sort(-1).values.cpu().numpy()
        first = np.ones(drawn.shape, bool)
        first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
        rows, entries = np.zeros(len(drawn), self.row), np.zeros(first.sum(), self.entry)
        rows["different"] = first.sum(-1)
        rows["entropy"] = torch.special.entr(log_p.exp()).sum(-1).cpu().numpy()
        entries["id"], entries["count"] = drawn[first], np.diff(np.flatnonzero(first), append=first.size)
        return {"rows": rows, "entries": entries}

    def decode(self, blocks: list[Block], device: torch.device) -> SparseTargets:
        rows, entries = (np.concatenate([block[name] for block in blocks]) for name in ("rows", "entries"))
        filled = np.arange(rows["different"].max()) < rows["different"][:, None]
        ids, p = np.zeros(filled.shape, np.int64), np.zeros(filled.shape, np.float32)
        ids[filled], p[filled] = entries["id"], entries["count"] / np.float32(self.draws)
        entropy = _floats(rows["entropy"], device)
        return SparseTargets(token_ids(ids, device), _floats(p, device), entropy=entropy)


def form_of(params: TeacherParams, vocab: int) -> TargetForm | None:
    """How the train split is kept beside its hidden states; None for hidden and online.

    Raises: UserError where topk is not below the vocabulary.
    """
    match params.logits:
        case "dense":
            return Dense(vocab)
        case "topk":
            return TopK(params.topk, vocab)
        case "sampled":
            return Sampled(params.draws, vocab)
        case _:
            return None


class Encoder:
    """Runs the teacher over blocks (n, T) of tokens and keeps its outputs in a form, some blocks at a time.

    Args:
        offsets: (n,) of the blocks' positions; None: all begin at 0.
    """

    def __init__(self, model: Any, form: Form, blocks: np.ndarray, batch: int = 16, offsets: np.ndarray | None = None):
        self.model, self.head, self.form, self.blocks, self.batch = model, head_of(model), form, blocks, batch
        self.offsets = offsets

    @property
    def part(self) -> int:
        """Blocks of a part of the cache: some seconds of work that an interruption costs, and 128 MiB at most."""
        return max(1, min(2**12, 2**27 // self.form.bytes) // self.blocks.shape[1])

    @torch.no_grad()
    def __call__(self, wanted: range) -> Iterator[Block]:
        for start in range(0, len(wanted), self.batch):
            some = wanted[start : start + self.batch]
            ids = token_ids(self.blocks[some], self.model.device)
            positions = positions_of(self.offsets, some, self.blocks.shape[1], ids.device)
            for index, hidden in zip(some, hidden_states(self.model, ids, positions), strict=True):
                yield self.form.encode(hidden, self.head, index)
