"""Short sequences as one (T, T) matrix of weights: quadratic, and up to some length less work than any other form.

Training and evaluation want no decoding state, so a mechanism's `parallel` may take this form. Shapes as in
mechanisms/base.py.
"""

import torch
from torch import Tensor

from attnopt.ops.tensors import repeat_heads, wide


def ages(tokens: int, like: Tensor) -> Tensor:
    """(T, T): how many tokens before query t, in rows, key s stands; negative where it comes after."""
    position = torch.arange(tokens, device=like.device)
    return position[:, None] - position


def only(seen: Tensor, like: Tensor) -> Tensor:
    """0 where `seen`, minus infinity elsewhere."""
    return torch.zeros(seen.shape, dtype=wide(like)[0].dtype, device=like.device).masked_fill(~seen, -torch.inf)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scaling: float) -> Tensor:
    """softmax(scaling q k^T + bias) v, (B, H, T, D) in q's dtype; every row of bias (..., T, T) has a finite entry."""
    wide_q, k, v = wide(q, repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1]))
    return ((wide_q @ k.mT * scaling + bias).softmax(-1) @ v).to(q.dtype)
