"""Softmax over all tokens up to the query's own, by PyTorch's scaled_dot_product_attention."""

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    """The output (B, H, T, D) of queries whose own tokens are the last T of the keys.

    Args:
        q: (B, H, T, D).
        k, v: (B, G, S, D).
        scaling: the factor on q . k.
    """
    new, seen = q.shape[2], k.shape[2]
    bias = None if new in (1, seen) else torch.ones(new, seen, dtype=torch.bool, device=k.device).tril(seen - new)
    return F.scaled_dot_product_attention(q, k, v, bias, is_causal=1 < new == seen, scale=scaling, enable_gqa=True)
