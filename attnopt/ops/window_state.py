"""The tokens that a mechanism with a window remembers: the last few, and the first few ("sinks")."""

from typing import NamedTuple

import torch
from torch import Tensor


class Kept(NamedTuple):
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

    def cut(self, last: int) -> "Kept":
        """Only the last `last` tokens beside the first ones, in memory of their own."""
        start = max(0, self.k.shape[2] - last)
        k, v, first_k, first_v = map(_own, (self.k[:, :, start:], self.v[:, :, start:], self.first_k, self.first_v))
        return Kept(k, v, first_k, first_v, self.seen)


def with_new(kept: Kept | None, k: Tensor, v: Tensor, first: int) -> Kept:
    """The kept tokens with the new ones k, v (B, G, T, D) behind them; `first` is how many first ones are kept."""
    if kept is None:
        return Kept(k, v, k[:, :, :first], v[:, :, :first], k.shape[2])
    first_k, first_v = kept.first_k, kept.first_v
    if kept.seen < first:
        first_k, first_v = (torch.cat(pair, 2)[:, :, :first] for pair in ((first_k, k), (first_v, v)))
    return Kept(torch.cat([kept.k, k], 2), torch.cat([kept.v, v], 2), first_k, first_v, kept.seen + k.shape[2])


def _own(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)
