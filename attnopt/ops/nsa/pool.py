"""Learned pooling of a block of tokens into one: a weighted mean whose weights stay a distribution."""

import torch
from torch import Tensor, nn


class Pool(nn.Module):
    """The weighted mean of each block, by weights that are a softmax over the positions in it, per key/value head.

    It starts as the plain mean.

    Args:
        heads: G.
        block: n, tokens per block.
        learns: whether the weights are parameters; else it stays the mean.
    """

    def __init__(self, heads: int, block: int, learns: bool = True):
        super().__init__()
        logits = torch.zeros(heads, block)
        self.logits = nn.Parameter(logits) if learns else nn.Buffer(logits)

    def forward(self, x: Tensor) -> Tensor:
        """The means (B, G, N, D) of N blocks of n tokens, x (B, G, N, n, D)."""
        weights = self.logits.to(x.dtype).softmax(-1)
        return torch.einsum("bgwnd,gn->bgwd", x, weights)
