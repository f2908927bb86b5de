"""Gates of recurrences: numbers per token and head that the layer's input moves away from a fitted constant."""

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from attnopt.mechanisms.base import Geometry
from attnopt.ops.tensors import wide

RANK = 16
"""Of the map from a layer's input to a gate per feature, as in gated linear attention (arXiv:2312.06635)."""


class Gate(nn.Module):
    """bias + W h_t, (B, G, T, n): n logits for each key/value head, moved by the layer's input h_t where it is given.

    W is zero at the start, so that a gate begins as the constant that it is fitted to. Where n > 1 it has rank RANK.

    Args:
        width: n, 1 or the number of features.
        reads: whether there is a W at all.
    """

    def __init__(self, geometry: Geometry, width: int = 1, reads: bool = True):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(geometry.kv_heads, width))
        inner = geometry.hidden if width == 1 else min(RANK, geometry.hidden)
        self.up = nn.Parameter(torch.zeros(geometry.kv_heads, width, inner)) if reads else None
        drawn = torch.randn(inner, geometry.hidden) * geometry.hidden**-0.5 if reads and width > 1 else None
        self.down = None if drawn is None else nn.Parameter(drawn)

    def forward(self, hidden: Tensor | None, like: Tensor) -> Tensor:
        """The logits for hidden (B, T, C), or where that is None the bias; shaped for `like` (B, *, T, *)."""
        (bias,) = wide(self.bias)
        if self.up is None or hidden is None:
            return bias[:, None].expand(like.shape[0], -1, like.shape[2], -1)
        hidden, up = wide(hidden, self.up)
        if self.down is not None:
            hidden = hidden @ wide(self.down)[0].mT
        groups, width, inner = up.shape
        logits = hidden @ up.reshape(-1, inner).mT + bias.flatten()
        return logits.unflatten(2, (groups, width)).transpose(1, 2)

    @torch.no_grad()
    def set(self, logit: Tensor) -> None:
        """The constant to start from, (G,)."""
        self.bias.copy_(logit[:, None].expand_as(self.bias))


def log_decay(logits: Tensor, least: float) -> Tensor:
    """log a = -softplus(logits), the gated recurrences' usual form, no less than `least`."""
    return (-nnf.softplus(logits)).clamp(min=least)


def half_life_logit(steps: Tensor) -> Tensor:
    """The logit at which a state loses half of itself in so many steps, at least one."""
    rate = math.log(2) / steps.clamp(min=1)
    return rate.expm1().log()


def logit_of(share: Tensor) -> Tensor:
    """The logit whose sigmoid is `share`."""
    return share.clamp(1e-3, 1 - 1e-3).logit()
