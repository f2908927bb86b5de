"""Short sequences as one (T, T) matrix of weights: quadratic, and up to some length less work than any other form.

Training and evaluation want no decoding state, so a mechanism's `parallel` may take this form. Shapes as in
mechanisms/base.py.
"""

import torch
from torch import Tensor

from attnopt.ops.tensors import repeat_heads, wide


def ages(tokens: int, like: Tensor) -> Tensor:
    """t - s for query t in rows and key s in columns, (T, T), on the device of `like`; negative for later keys."""
    position = torch.arange(tokens, device=like.device)
    return position[:, None] - position


def only(seen: Tensor, like: Tensor) -> Tensor:
    """A mask to add to scores: 0 where `seen`, minus infinity elsewhere, in at least float32 as `like` is widened."""
    return torch.zeros(seen.shape, dtype=wide(like)[0].dtype, device=like.device).masked_fill(~seen, -torch.inf)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scaling: float) -> Tensor:
    """softmax(scaling q k^T + bias) v with all scores in memory.

    Args:
        q: (B, H, T, D).
        k, v: (B, G, T, D).
        bias: broadcasts to (B, H, T, T); every row must have a finite entry.
        scaling: the factor on q . k.

    Returns: (B, H, T, D) in q's dtype.
    """
    wide_q, k, v = wide(q, repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1]))
    return ((wide_q @ k.mT * scaling + bias).softmax(-1) @ v).to(q.dtype)
