"""The tokens that a mechanism with a window remembers: the last few, and the first few ("sinks")."""

from typing import NamedTuple

import torch
from torch import Tensor

from attnopt.ops.growing import Tokens
from attnopt.ops.tensors import last_tokens, own_copy


class WindowState(NamedTuple):
    """Keys and values of the last tokens and of the first ones.

    Attributes:
        last_k: (B, G, n, D) keys of the last n tokens; a plain tensor until the first `cut`.
        last_v: (B, G, n, D) their values.
        first_k: (B, G, f, D) keys of the first f tokens; they are here also while they are among the last.
        first_v: (B, G, f, D) their values.
        seen: how many tokens there have been in all.
    """

    last_k: Tokens | Tensor
    last_v: Tokens | Tensor
    first_k: Tensor
    first_v: Tensor
    seen: int

    @property
    def k(self) -> Tensor:
        """Keys of the last tokens, (B, G, n, D)."""
        return self.last_k.tensor if isinstance(self.last_k, Tokens) else self.last_k

    @property
    def v(self) -> Tensor:
        """Their values."""
        return self.last_v.tensor if isinstance(self.last_v, Tokens) else self.last_v

    def cut(self, last: int) -> "WindowState":
        """The state with only the last `last` tokens beside the first ones, in memory of its own."""
        return self._replace(last_k=_cut(self.last_k, last), last_v=_cut(self.last_v, last))


def append_tokens(kept: WindowState | None, k: Tensor, v: Tensor, first: int) -> WindowState:
    """The state with new tokens behind the old ones; nothing is cut off yet.

    Args:
        kept: the state before, or None at the start of the sequence.
        k, v: (B, G, T, D), the new tokens.
        first: f, how many first tokens are to be kept.

    Returns: a state that may share memory with k and v, to be `cut` before it is kept.
    """
    if kept is None:
        return WindowState(k, v, own_copy(k[:, :, :first]), own_copy(v[:, :, :first]), k.shape[2])
    first_k, first_v = kept.first_k, kept.first_v
    if kept.seen < first:
        first_k, first_v = (own_copy(torch.cat(pair, 2)[:, :, :first]) for pair in ((first_k, k), (first_v, v)))
    last_k, last_v = _appended(kept.last_k, k), _appended(kept.last_v, v)
    return WindowState(last_k, last_v, first_k, first_v, kept.seen + k.shape[2])


def _appended(old: Tokens | Tensor, new: Tensor) -> Tokens:
    return (old if isinstance(old, Tokens) else Tokens(old)).append(new)


def _cut(tokens: Tokens | Tensor, last: int) -> Tokens:
    return tokens.last(last) if isinstance(tokens, Tokens) else Tokens(last_tokens(tokens, last))
