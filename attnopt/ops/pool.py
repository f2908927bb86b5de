"""Learned pooling of a block of tokens into one: a weighted mean whose weights stay a distribution."""

import torch
from torch import Tensor, nn


class Pool(nn.Module):
    """Pools (B, G, N, n, D), N blocks of n tokens, to (B, G, N, D).

    The weights are a softmax over the block's positions, per key/value head; it starts as the mean.
    """

    def __init__(self, heads: int, block: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(heads, block))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.logits.softmax(-1).to(x.dtype)
        return torch.einsum("bgwnd,gn->bgwd", x, weights)
