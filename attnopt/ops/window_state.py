"""The tokens that a mechanism with a window remembers: the last few, and the first few ("sinks")."""

from typing import NamedTuple

import torch
from torch import Tensor

from attnopt.ops.growing import Tokens
from attnopt.ops.tensors import own_copy


class WindowState(NamedTuple):
    """Keys and values of the last tokens and of the first ones.

    Attributes:
        last_k: (B, G, n, D) keys of the last n tokens, and before them in its memory of the first; a plain tensor of
            all tokens so far until the first `cut`.
        last_v: their values.
        first: f, how many first tokens are kept; they are here also while they are among the last.
        seen: how many tokens there have been in all.
    """

    last_k: Tokens | Tensor
    last_v: Tokens | Tensor
    first: int
    seen: int

    @property
    def k(self) -> Tensor:
        """Keys of the last tokens, (B, G, n, D)."""
        return self.last_k.tensor if isinstance(self.last_k, Tokens) else self.last_k

    @property
    def v(self) -> Tensor:
        """Their values."""
        return self.last_v.tensor if isinstance(self.last_v, Tokens) else self.last_v

    @property
    def first_k(self) -> Tensor:
        """Keys of the first f tokens, (B, G, f, D), or of all where there were fewer."""
        return self.last_k.pinned if isinstance(self.last_k, Tokens) else self.last_k[:, :, : self.first]

    @property
    def first_v(self) -> Tensor:
        """Their values."""
        return self.last_v.pinned if isinstance(self.last_v, Tokens) else self.last_v[:, :, : self.first]

    @property
    def stretches(self) -> tuple[Tensor, Tensor]:
        """Keys and values as they lie in memory after the first `cut`, (B, G, m, D) each: see `Tokens.stretch`."""
        assert isinstance(self.last_k, Tokens)
        assert isinstance(self.last_v, Tokens)
        return self.last_k.stretch, self.last_v.stretch

    def cut(self, last: int) -> "WindowState":
        """The state with only the last `last` tokens beside the first ones, in memory of its own."""
        return WindowState(_cut(self.last_k, last, self.first), _cut(self.last_v, last, self.first), *self[2:])


def append_tokens(kept: WindowState | None, k: Tensor, v: Tensor, first: int) -> WindowState:
    """The state with new tokens behind the old ones; nothing is cut off yet.

    Args:
        kept: the state before, or None at the start of the sequence.
        k, v: (B, G, T, D), the new tokens.
        first: f, how many first tokens are to be kept.

    Returns: a state that may share memory with k and v, to be `cut` before it is kept.
    """
    if kept is None:
        return WindowState(k, v, first, k.shape[2])
    last_k, last_v = _tokens(kept.last_k, first).append(k), _tokens(kept.last_v, first).append(v)
    return WindowState(last_k, last_v, first, kept.seen + k.shape[2])


def _tokens(old: Tokens | Tensor, first: int) -> Tokens:
    return old if isinstance(old, Tokens) else Tokens(old, first)


def _cut(tokens: Tokens | Tensor, last: int, first: int) -> Tokens:
    if isinstance(tokens, Tokens):
        return tokens.last(last)
    start = max(tokens.shape[2] - last, 0)
    if start <= first:
        return Tokens(own_copy(tokens), first, start)
    return Tokens(torch.cat([tokens[:, :, :first], tokens[:, :, start:]], dim=2), first, first)
