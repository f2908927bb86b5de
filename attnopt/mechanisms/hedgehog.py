"""Hedgehog: linear attention whose learned features are as spiky as softmax (Zhang et al. 2024), and its hybrid with a
window (LoLCATs, Zhang et al. 2024, arXiv:2410.10254).

    phi(x) = softmax([W x', -W x'])     W per head, one for queries and one for keys; x' = x at the usual scaling

W starts as the identity. The fit takes it times the factor, out of `SHARPNESS`, that brings the kernel closest to the
softmax of the teacher's queries and keys.
"""

import torch
from torch import Tensor, nn

from attnopt.mechanisms._hybrid import Hybrid
from attnopt.mechanisms.base import Geometry, repeat_heads, wide

SHARPNESS = (1.0, 2**0.5, 2.0, 2 * 2**0.5)
FLOOR = -20.0
"""Least logit beside the largest, so that no product of features vanishes; gradients take no notice of it."""


class Hedgehog(Hybrid):
    source = "https://arxiv.org/abs/2402.04347"
    cost = "w D + D^2"

    def __init__(self, geometry: Geometry, options: Hybrid.Options):
        super().__init__(geometry, options)
        identity = torch.eye(geometry.head_dim)
        self.query_weight = nn.Parameter(identity.repeat(geometry.heads, 1, 1))
        self.key_weight = nn.Parameter(identity.repeat(geometry.kv_heads, 1, 1))
        self.scale = geometry.scaling**0.5 * geometry.head_dim**0.25

    def size(self) -> int:
        return 2 * self.geometry.head_dim

    def query_map(self, q: Tensor) -> Tensor:
        return self._features(q, self.query_weight)

    def key_map(self, k: Tensor) -> Tensor:
        return self._features(k, self.key_weight)

    def _features(self, x: Tensor, weight: Tensor) -> Tensor:
        (weight,) = wide(weight)
        x = x @ (weight * self.scale).mT
        logits = torch.cat([x, -x], dim=-1)
        with torch.no_grad():
            logits.clamp_(min=logits.amax(-1, keepdim=True) + FLOOR)
        return logits.softmax(-1)

    def fit_map(self, q: Tensor, k: Tensor) -> None:
        if q.shape[2] > self.options.window:
            losses = torch.stack([self._cross_entropy(q, k, factor) for factor in SHARPNESS])
            self._sharpen(q.new_tensor(SHARPNESS)[losses.argmin(0)])

    def _cross_entropy(self, q: Tensor, k: Tensor, factor: float) -> Tensor:
        """(G,) of softmax and kernel over far tokens, with W = factor times the identity."""
        self._sharpen(q.new_full((k.shape[1],), factor))
        exact, kernel = (t.log_softmax(-1) for t in self.far_logs(q, k))
        per_head = -(exact.exp() * kernel.masked_fill(exact.isneginf(), 0)).sum(-1).mean((0, 2))
        return per_head.unflatten(0, (k.shape[1], -1)).mean(1)

    def _sharpen(self, factor: Tensor) -> None:
        """W = factor (G,) times the identity."""
        weight = factor[:, None, None] * torch.eye(self.geometry.head_dim).to(factor)
        self.key_weight.copy_(weight)
        self.query_weight.copy_(repeat_heads(weight[None], self.geometry.heads)[0])
