"""Features as spiky as softmax: phi(x) = softmax([W x, -W x]), positive and of sum one (Zhang et al. 2024)."""

import torch
from torch import Tensor, nn

from attnopt.ops.tensors import wide

FLOOR = -20.0
"""The least logit, relative to the largest, so that no feature, and no product of features, vanishes in float32."""


def spiky_features(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    """phi of x (B, heads, T, D) by W = scale weight, (heads, r, D): (B, heads, T, 2 r)."""
    x = x @ (wide(weight)[0] * scale).mT
    logits = torch.cat([x, -x], dim=-1)
    # The floor is set in place and not recorded: gradients pass through it, so that a feature on the floor can
    # leave it. It is safe, as cat keeps none of its values for the backward pass, and softmax keeps its own result.
    with torch.no_grad():
        logits.clamp_(min=logits.amax(-1, keepdim=True) + FLOOR)
    return logits.softmax(-1)


def first_rows(count: int, dim: int) -> Tensor:
    """W to start from, (count, dim): the identity, with random rotations under it where count > dim, cut to count."""
    blocks = [torch.eye(dim), *[nn.init.orthogonal_(torch.empty(dim, dim)) for _ in range(-(-count // dim) - 1)]]
    return torch.cat(blocks)[:count]
