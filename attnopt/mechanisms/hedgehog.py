"""Hedgehog: linear attention whose learned features are as spiky as softmax, and its hybrid with a softmax window.

    phi(x) = softmax([W x', -W x'])     W per head, one for queries and one for keys; x' = x at the usual scaling

The far tokens' weights are phi(q) . phi(k), the near ones' exp(scaling q . k), under one normaliser
(`shared/hybrid.py`).

Source: Zhang et al. 2024 for the features; LoLCATs (Zhang et al. 2024, arXiv:2410.10254) for the hybrid with a window.
Approximated: softmax's kernel on tokens beyond the window. Start: W is the identity, and has random rotations under it
where it has more rows; the fit takes that times the factor, out of `SHARPNESS`, that brings the kernel closest to the
softmax of the teacher's queries and keys.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from attnopt.mechanisms.base import Geometry
from attnopt.mechanisms.shared.hybrid import Hybrid
from attnopt.mechanisms.shared.spiky import first_rows, spiky_features
from attnopt.ops.tensors import repeat_heads

SHARPNESS = (1.0, 2**0.5, 2.0, 2 * 2**0.5)
"""Factors on the first W that the fit tries; the larger, the spikier the features."""


class Hedgehog(Hybrid):
    source = "https://arxiv.org/abs/2402.04347"
    paper = "Zhang et al. 2024"
    cost = "(w + f) D + D^2"

    class Options(Hybrid.Options):
        feature_dim: int | None = Field(default=None, ge=1)
        """Rows of W, half the number of features; null for head_dim."""

    rows: Tensor
    """W before the fit, (feature_dim, D)."""

    def __init__(self, geometry: Geometry, options: Options):
        super().__init__(geometry, options)
        rows = first_rows(options.feature_dim or geometry.head_dim, geometry.head_dim)
        self.register_buffer("rows", rows, persistent=False)
        self.query_weight = nn.Parameter(self.rows.repeat(geometry.heads, 1, 1))
        self.key_weight = nn.Parameter(self.rows.repeat(geometry.kv_heads, 1, 1))
        self.scale = geometry.scaling**0.5 * geometry.head_dim**0.25

    def size(self) -> int:
        return 2 * len(self.rows)

    def query_map(self, q: Tensor) -> Tensor:
        return spiky_features(q, self.query_weight, self.scale)

    def key_map(self, k: Tensor) -> Tensor:
        return spiky_features(k, self.key_weight, self.scale)

    def fit_map(self, q: Tensor, k: Tensor) -> None:
        if q.shape[2] > self.options.window + self.options.sinks:
            losses = torch.stack([self._cross_entropy(q, k, factor) for factor in SHARPNESS])
            self._sharpen(q.new_tensor(SHARPNESS)[losses.argmin(0)])

    def _cross_entropy(self, q: Tensor, k: Tensor, factor: float) -> Tensor:
        """The cross-entropy (G,) between softmax's and the kernel's weights on far tokens, at W = factor W_0.

        It leaves W at that factor; `fit_map` sets the best one at the end.
        """
        self._sharpen(q.new_full((k.shape[1],), factor))
        exact, kernel = (t.log_softmax(-1) for t in self.far_logs(q, k))
        per_head = -(exact.exp() * kernel.masked_fill(exact.isneginf(), 0)).sum(-1).mean((0, 2))
        return per_head.unflatten(0, (k.shape[1], -1)).mean(1)

    def _sharpen(self, factor: Tensor) -> None:
        """Set W to `factor` (G,) times its start W_0."""
        weight = factor[:, None, None] * self.rows.to(factor)
        self.key_weight.copy_(weight)
        self.query_weight.copy_(repeat_heads(weight[None], self.geometry.heads)[0])

    @classmethod
    def conformance_options(cls) -> dict[str, Hybrid.Options]:
        return super().conformance_options() | {"wide": cls.Options(feature_dim=12)}
