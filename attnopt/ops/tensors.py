"""Tensor helpers that every algorithm and every mechanism may use."""

import torch
from torch import Tensor

MASKED = -1e30
"""The score of a key that must not be read, or what is added to its score. It is finite, so that a row in which every
key is masked holds no NaN and passes on gradients of zero, and it is far below any score that is meant."""


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """x (B, G, ...) with each key/value head repeated for its H / G query heads: (B, H, ...); x itself where G = H."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in at least float32, the precision of every accumulator: float64 stays, all else becomes float32."""
    return tuple(t if t.dtype == torch.float64 else t.float() for t in tensors)


def own_copy(x: Tensor) -> Tensor:
    """A copy of x, dense and in memory of its own: a state must not keep alive the tensor that it was cut from."""
    return x.clone(memory_format=torch.contiguous_format)


def last_tokens(x: Tensor, count: int) -> Tensor:
    """The last `count` tokens of x (B, G, T, D), or all where there are fewer, in memory of their own."""
    return own_copy(x[:, :, max(0, x.shape[2] - count) :])
