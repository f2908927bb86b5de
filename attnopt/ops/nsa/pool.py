"""Learned pooling of a block of tokens into one: a weighted mean whose weights stay a distribution."""

import torch
from torch import Tensor, nn


class Pool(nn.Module):
    """Pools (B, G, N, n, D), N blocks of n tokens, to (B, G, N, D).

    The weights are a softmax over the block's positions, per key/value head; it starts as the mean, and stays it where
    it does not learn.
    """

    def __init__(self, heads: int, block: int, learns: bool = True):
        super().__init__()
        logits = torch.zeros(heads, block)
        self.logits = nn.Parameter(logits) if learns else nn.Buffer(logits)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.logits.to(x.dtype).softmax(-1)
        return torch.einsum("bgwnd,gn->bgwd", x, weights)
