"""Tokens that are appended to in place: what a decoding state of growing length is made of.

Joining old keys and new ones (`torch.cat`) copies all of them at every decoding step. Here they lie at the start of a
larger memory, whose size doubles when it is full, so that a token is copied about once in all.

A window drops old tokens: `last` leaves them where they are, and its memory slides only once in as many steps.

A `Tokens` never changes: `append` returns another one, longer, which shares the memory. The memory knows how many of
its tokens are taken. A `Tokens` that ends there is the newest and is appended to in place; any other one, as where a
state is continued twice, is copied first. So nobody's tokens are ever written over, and all that it costs to be sure is
to compare two integers.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from attnopt.ops.tensors import own_copy


class Memory:
    """What several `Tokens` may share.

    Attributes:
        data: (B, G, capacity, D). Where it is full it is replaced by a larger copy, for all who share it.
        taken: how many tokens of it, from the first, belong to some `Tokens`.
    """

    __slots__ = ("data", "taken")

    def __init__(self, data: Tensor, taken: int):
        self.data, self.taken = data, taken


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

    In a nest that torch's pytrees walk it stands for the one tensor `tensor`.

    Args:
        data: (B, G, n, D), taken over as it is: it must not be a view of something larger, nor be written to after.

    Attributes:
        count: n.
    """

    __slots__ = ("_memory", "_start", "count")

    def __init__(self, data: Tensor):
        self._memory, self._start, self.count = Memory(data, data.shape[2]), 0, data.shape[2]

    @classmethod
    def _of(cls, memory: Memory, count: int, start: int = 0) -> "Tokens":
        made = cls.__new__(cls)
        made._memory, made._start, made.count = memory, start, count
        return made

    @property
    def tensor(self) -> Tensor:
        """The tokens (B, G, n, D): a view, to be read only, whose rows are dense."""
        return self._memory.data[:, :, self._start : self._start + self.count]

    @property
    def capacity(self) -> int:
        """How many tokens there is memory for: n after a prefill, at most 2 n later."""
        return self._memory.data.shape[2]

    def append(self, new: Tensor) -> "Tokens":
        """These tokens and then new ones (B, G, T, D): as torch.cat gives them, this one left as it is.

        Written in place where nobody else has appended to these same tokens, copied where somebody has. Where gradients
        are wanted it is torch.cat.
        """
        memory, start, count = self._memory, self._start, self.count + new.shape[2]
        if not _writable(memory.data, new):
            return type(self)(torch.cat([self.tensor, new], dim=2))
        fits = start + count <= self.capacity
        if memory.taken != start + self.count or (start and not fits):
            memory, start = Memory(_with_room(self.tensor, count), self.count), 0
        elif not fits:
            memory.data = _with_room(memory.data, count)
        # `.data`: tokens that a backward pass has kept stay as they are, which autograd, counting writes, cannot know
        memory.data.data[:, :, start + self.count : start + count] = new
        memory.taken = start + count
        return self._of(memory, count, start)

    def last(self, count: int) -> "Tokens":
        """The last `count` of these tokens, or all: in the same memory unless that is over twice as much."""
        left_out = max(self.count - count, 0)
        if self._memory.data.requires_grad or self.capacity > 2 * (self.count - left_out):
            return type(self)(own_copy(self.tensor[:, :, left_out:]))
        return self._of(self._memory, self.count - left_out, self._start + left_out)

    def with_room(self) -> "Tokens":
        """The same tokens in memory of their own, with as much room behind them as decoding has in its midst."""
        data = _with_room(self.tensor.detach(), self.count + 1)
        return self._of(Memory(data, self.count), self.count)

    def select(self, index: Tensor) -> "Tokens":
        """The sequences `index` (n,) of the batch, in memory of their own, with room behind them if these have it."""
        data = self._memory.data[:, :, self._start : self._start + 2 * self.count]
        return self._of(Memory(data.index_select(0, index.to(data.device)), self.count), self.count)

    def __repr__(self) -> str:
        return f"Tokens{tuple(self.tensor.shape)}"


def _writable(data: Tensor, new: Tensor) -> bool:
    """Whether `new` may be copied into memory like `data`: no gradient is lost, and the two are of one kind."""
    if data.requires_grad or (new.requires_grad and torch.is_grad_enabled()):
        return False
    if data.is_inference() and not torch.is_inference_mode_enabled():
        return False
    kinds = [(t.dtype, t.device, *t.shape[:2], *t.shape[3:]) for t in (data, new)]
    return kinds[0] == kinds[1]


def _with_room(x: Tensor, count: int) -> Tensor:
    """A copy of x (B, G, n, D) at the start of memory for `count` tokens or 2 n, whichever is more.

    The rest is zeros: a page that was never written to is no memory yet to the system, and peaks would look too low.
    """
    tokens = x.shape[2]
    with torch.inference_mode(False):  # who shares it may want gradients
        grown = x.new_empty(*x.shape[:2], max(count, 2 * tokens), x.shape[3])
    grown[:, :, :tokens] = x
    grown[:, :, tokens:] = 0
    return grown


def _leaves(tokens: Tokens) -> tuple[list[Tensor], None]:
    return [tokens.tensor], None


def _rebuilt(leaves: Any, _: None) -> Tokens:
    return Tokens(*leaves)


register_pytree_node(Tokens, _leaves, _rebuilt)
