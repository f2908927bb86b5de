"""Tensor helpers below the contract of a mechanism."""

import torch
from torch import Tensor


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """(B, G, T, D) -> (B, H, T, D): each key/value head stands under its group of query heads."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in at least float32, the precision of every accumulator."""
    return tuple(t if t.dtype == torch.float64 else t.float() for t in tensors)
