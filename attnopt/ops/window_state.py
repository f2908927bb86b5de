"""The tokens that a mechanism with a window remembers: the last few, and the first few ("sinks")."""

from typing import NamedTuple

import torch
from torch import Tensor

from attnopt.ops.tensors import last_tokens, own_copy


class WindowState(NamedTuple):
    """Keys and values of tokens.

    Attributes:
        k, v: (B, G, n, D) the last n tokens.
        first_k, first_v: (B, G, f, D) the first f.
        seen: how many tokens there have been.
    """

    k: Tensor
    v: Tensor
    first_k: Tensor
    first_v: Tensor
    seen: int

    def cut(self, last: int) -> "WindowState":
        """Only the last `last` tokens beside the first ones, in memory of their own."""
        k, v = last_tokens(self.k, last), last_tokens(self.v, last)
        return WindowState(k, v, own_copy(self.first_k), own_copy(self.first_v), self.seen)


def append_tokens(kept: WindowState | None, k: Tensor, v: Tensor, first: int) -> WindowState:
    """The kept tokens with the new ones k, v (B, G, T, D) behind them; `first` is how many first ones are kept."""
    if kept is None:
        return WindowState(k, v, k[:, :, :first], v[:, :, :first], k.shape[2])
    first_k, first_v = kept.first_k, kept.first_v
    if kept.seen < first:
        first_k, first_v = (torch.cat(pair, 2)[:, :, :first] for pair in ((first_k, k), (first_v, v)))
    return WindowState(torch.cat([kept.k, k], 2), torch.cat([kept.v, v], 2), first_k, first_v, kept.seen + k.shape[2])
