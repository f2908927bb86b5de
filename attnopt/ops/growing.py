"""Tokens that are appended to in place: what a decoding state of growing length is made of.

Joining old keys and new ones (`torch.cat`) copies all of them at every decoding step. Here they lie at the start of a
larger memory, whose size doubles when it is full, so that a token is copied about once in all.

A window drops tokens: `last` leaves them where they are, between the first ones, which it may keep, and the last. They
are hidden from whoever reads all of the memory at once (`hidden`), and left behind when it is full and copied.

A `Tokens` never changes: `append` returns another one, longer, which shares the memory. The memory knows how many of
its tokens are taken. A `Tokens` that ends there is the newest and is appended to in place; any other one, as where a
state is continued twice, is copied first. So nobody's tokens are ever written over, and all that it costs to be sure is
to compare two integers.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from attnopt.ops.tensors import own_copy


class Memory:
    """What several `Tokens` may share.

    Attributes:
        data: (B, G, capacity, D). Where it is full it is replaced by a larger copy, for all who share it.
        raw: the same memory, out of sight of autograd, which counts writes and cannot know that none is to a token that
            a backward pass has kept.
        taken: how many tokens of it, from the first, belong to some `Tokens`.
        mask: (capacity,) what `Tokens.hidden` last gave, or None. masked: the token up to which it hides.
    """

    __slots__ = ("data", "mask", "masked", "raw", "taken")

    def __init__(self, data: Tensor, taken: int):
        self.taken = taken
        self.replace(data)

    def replace(self, data: Tensor) -> None:
        self.data, self.raw = data, data.data
        self.mask: Tensor | None = None
        self.masked = 0

    def __deepcopy__(self, memo: dict) -> "Memory":
        return Memory(copy.deepcopy(self.data, memo), self.taken)


class Tokens:
    """An immutable run of tokens (B, G, n, D), such as all keys so far, to which more can be appended cheaply.

    Example: the memory of four tokens has room for four more, which only one continuation of them can have.

        >>> prompt = Tokens(torch.zeros(1, 1, 4, 2))
        >>> left = prompt.append(torch.ones(1, 1, 1, 2))
        >>> right = prompt.append(2 * torch.ones(1, 1, 1, 2))
        >>> [t.tensor[0, 0, -1, 0].item() for t in (prompt, left, right)]
        [0.0, 1.0, 2.0]
        >>> prompt.count, left.count, left.capacity
        (4, 5, 8)

    In a nest that torch's pytrees walk it stands for the one tensor `tensor`; where it keeps first tokens, for those of
    them that are not among the last, and then for `tensor`.

    Args:
        data: (B, G, n, D), taken over as it is: it must not be a view of something larger, nor be written to after.
        first: f, how many first tokens are kept though `last` drops them.
        start: how many of `data` are first tokens alone, and not among the last; at most f.

    Attributes:
        count: n, the number of the last tokens. first: f.
    """

    __slots__ = ("_memory", "_slides", "_start", "count", "first")

    def __init__(self, data: Tensor, first: int = 0, start: int = 0):
        self._memory, self._start, self._slides = Memory(data, data.shape[2]), start, start > 0
        self.count, self.first = data.shape[2] - start, first

    def _of(self, memory: Memory, count: int, start: int, slides: bool | None = None) -> "Tokens":
        made = type(self).__new__(type(self))
        made._memory, made._start, made._slides = memory, start, self._slides if slides is None else slides
        made.count, made.first = count, self.first
        return made

    @property
    def tensor(self) -> Tensor:
        """The last tokens (B, G, n, D): a view, to be read only, whose rows are dense."""
        return self._memory.data[:, :, self._start : self._start + self.count]

    @property
    def pinned(self) -> Tensor:
        """The first f tokens (B, G, f, D), or all where there were fewer: a view; some may be among the last too."""
        return self._memory.data[:, :, : min(self.first, self._start + self.count)]

    @property
    def stretch(self) -> Tensor:
        """The memory from the first tokens to the last (B, G, m, D), with those between that `hidden` hides: a view."""
        return self._memory.data[:, :, : self._start + self.count]

    @property
    def capacity(self) -> int:
        """How many tokens there is memory for: as many as there are after a prefill, at most twice as many later."""
        return self._memory.data.shape[2]

    def hidden(self, seen: int) -> Tensor | None:
        """What to add to the scores of `stretch`, (m,), so that its first f and last `seen` tokens are read; or None.

        Of the newest tokens of a memory only: older ones would have to be shown again.
        """
        memory, stop = self._memory, self._start + self.count
        until = stop - seen
        if until <= self.first:
            return None
        if memory.mask is None or memory.masked > until:
            with torch.inference_mode(False):
                memory.mask = memory.raw.new_zeros(self.capacity)
            memory.masked = self.first
        if memory.masked < until:
            memory.mask[memory.masked : until] = -torch.inf
            memory.masked = until
        return memory.mask[:stop]

    def append(self, new: Tensor) -> "Tokens":
        """These tokens and then new ones (B, G, T, D): as torch.cat gives them, this one left as it is.

        Written in place where nobody else has appended to these same tokens, copied where somebody has. Where gradients
        are wanted it is torch.cat.
        """
        memory, start, count = self._memory, self._start, self.count + new.shape[2]
        if not _writable(memory.data, new):
            data = torch.cat([self._held(), new], dim=2)
            start = min(start, self.first)
            return self._of(Memory(data, data.shape[2]), count, start)
        end, stop = start + self.count, start + count
        if memory.taken != end or (stop > memory.data.shape[2] and start > self.first):
            start = min(start, self.first)
            end, stop = start + self.count, start + count
            memory = Memory(_with_room(self._held(), end, stop, self._slides), end)
        elif stop > memory.data.shape[2]:
            memory.replace(_with_room(memory.data, end, stop, self._slides))
        memory.raw[:, :, end:stop] = new
        memory.taken = stop
        return self._of(memory, count, start)

    def last(self, count: int) -> "Tokens":
        """The last `count` of these tokens, or all: in the same memory unless that is much more."""
        left_out = max(self.count - count, 0)
        start, kept = self._start + left_out, self.count - left_out
        made = self._of(self._memory, kept, start, self._slides or left_out > 0)
        held = min(start, self.first) + kept
        if left_out and (self._memory.data.requires_grad or self.capacity > held + _slack(held)):
            return made._of(Memory(own_copy(made._held()), held), kept, min(start, self.first))
        return made

    def with_room(self) -> "Tokens":
        """The same tokens in memory of their own, with as much room behind them as decoding has in its midst."""
        start = min(self._start, self.first)
        held = start + self.count
        return self._of(
            Memory(_with_room(self._held().detach(), held, held + 1, self._slides), held), self.count, start
        )

    def select(self, index: Tensor) -> "Tokens":
        """The sequences `index` (n,) of the batch, in memory of their own, with room behind them if these have it."""
        start = min(self._start, self.first)
        held = start + self.count
        data = self._held() if self._start > start else self._memory.data[:, :, : 2 * held]
        return self._of(Memory(data.index_select(0, index.to(data.device)), held), self.count, start)

    def _held(self) -> Tensor:
        """The first tokens and the last, without what was dropped between them, (B, G, min(start, f) + n, D)."""
        if self._start <= self.first:
            return self.stretch
        return torch.cat([self.pinned, self.tensor], dim=2) if self.first else self.tensor

    def __repr__(self) -> str:
        return f"Tokens{tuple(self.tensor.shape)}"


def _writable(data: Tensor, new: Tensor) -> bool:
    """Whether `new` may be copied into memory like `data`: no gradient is lost, and the two are of one kind."""
    if data.requires_grad or (new.requires_grad and torch.is_grad_enabled()):
        return False
    if data.is_inference() and not torch.is_inference_mode_enabled():
        return False
    ours, theirs = data.shape, new.shape
    same = ours[0] == theirs[0] and ours[1] == theirs[1] and ours[3] == theirs[3]
    return same and data.dtype == new.dtype and data.device == new.device


def _slack(held: int) -> int:
    """Room behind a window's tokens: little, as hidden tokens are read too, but enough that it is seldom copied."""
    return max(held // 4, min(held, 16))


def _with_room(x: Tensor, tokens: int, count: int, slides: bool) -> Tensor:
    """A copy of the first `tokens` of x (B, G, n, D) in memory for `count`, and for more: a window's slack, or as many.

    The rest is zeros: a page that was never written to is no memory yet to the system, and peaks would look too low.
    """
    with torch.inference_mode(False):  # who shares it may want gradients
        room = _slack(tokens) if slides else tokens
        grown = x.new_empty(*x.shape[:2], max(count, tokens + room), x.shape[3])
    grown[:, :, :tokens] = x[:, :, :tokens]
    grown[:, :, tokens:] = 0
    return grown


def _leaves(tokens: Tokens) -> tuple[list[Tensor], int]:
    if not tokens.first:
        return [tokens.tensor], 0
    return [tokens.pinned[:, :, : tokens._start], tokens.tensor], tokens.first


def _rebuilt(leaves: Any, first: int) -> Tokens:
    if not first:
        return Tokens(*leaves)
    alone, last = leaves
    return Tokens(torch.cat([alone, last], dim=2), first, alone.shape[2]) if alone.shape[2] else Tokens(last, first)


register_pytree_node(Tokens, _leaves, _rebuilt)
