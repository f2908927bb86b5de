"""The tokens that a mechanism with a window remembers: the last few, and the first few ("sinks")."""

from typing import NamedTuple

import torch
from torch import Tensor

from attnopt.ops.tensors import last_tokens, own_copy


class WindowState(NamedTuple):
    """Keys and values of the last tokens and of the first ones.

    Attributes:
        k: (B, G, n, D) keys of the last n tokens.
        v: (B, G, n, D) their values.
        first_k: (B, G, f, D) keys of the first f tokens; they are here also while they are among the last.
        first_v: (B, G, f, D) their values.
        seen: how many tokens there have been in all.
    """

    k: Tensor
    v: Tensor
    first_k: Tensor
    first_v: Tensor
    seen: int

    def cut(self, last: int) -> "WindowState":
        """The state with only the last `last` tokens beside the first ones, in memory of its own."""
        k, v = last_tokens(self.k, last), last_tokens(self.v, last)
        return WindowState(k, v, own_copy(self.first_k), own_copy(self.first_v), self.seen)


def append_tokens(kept: WindowState | None, k: Tensor, v: Tensor, first: int) -> WindowState:
    """The state with new tokens behind the old ones; nothing is cut off yet.

    Args:
        kept: the state before, or None at the start of the sequence.
        k, v: (B, G, T, D), the new tokens.
        first: f, how many first tokens are to be kept.

    Returns: a state that may share memory with k and v, to be `cut` before it is kept.
    """
    if kept is None:
        return WindowState(k, v, k[:, :, :first], v[:, :, :first], k.shape[2])
    first_k, first_v = kept.first_k, kept.first_v
    if kept.seen < first:
        first_k, first_v = (torch.cat(pair, 2)[:, :, :first] for pair in ((first_k, k), (first_v, v)))
    return WindowState(torch.cat([kept.k, k], 2), torch.cat([kept.v, v], 2), first_k, first_v, kept.seen + k.shape[2])
