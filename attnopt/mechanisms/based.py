"""Based: linear attention by the second-order Taylor expansion of exp on a low-rank projection, and a softmax window.

    phi(q) . phi(k) = 1 + s + s^2 / 2,   s = tau (P q) . (Q k),   P, Q: (d, D) per head

phi(x) holds 1, the d entries of x, their squares over sqrt 2 and the d (d - 1) / 2 products of two. The far tokens'
weights are phi(q) . phi(k), the near ones' exp(scaling q . k), under one normaliser (`shared/hybrid.py`).

Source: Arora et al. 2024. Approximated: softmax's kernel on tokens beyond the window, by the polynomial and by the
rank. The polynomial is at least 1/2, but grows again below s = -1 where exp does not: hence short vectors
(`shared/centring.py`) and a learnable tau. Start: the fit takes the P and Q of rank d for which s is closest to the
centred score in the mean square.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from attnopt.mechanisms.base import Geometry
from attnopt.mechanisms.shared.hybrid import Hybrid
from attnopt.mechanisms.shared.projections import closest_projections
from attnopt.ops.tensors import repeat_heads, wide

LONGEST = 16.0
"""Projections longer than this are shortened to it: (P q . Q k)^2 must leave the 1 standing in float32 sums."""


class Based(Hybrid):
    source = "https://arxiv.org/abs/2402.18668"
    paper = "Arora et al. 2024"
    cost = "(w + f) D + d^2 D"

    class Options(Hybrid.Options):
        feature_dim: int = Field(default=16, ge=1)
        """d, the rank of the projection; head_dim at most."""

    def __init__(self, geometry: Geometry, options: Options):
        super().__init__(geometry, options)
        self.rank = min(options.feature_dim, geometry.head_dim)
        self.parallel_up_to = min(1024, 5 * self.size() // 2)  # streaming costs size() per token, `kernel` d
        rows = torch.stack([_orthonormal(self.rank, geometry.head_dim) for _ in range(geometry.kv_heads)])
        rows = rows * (geometry.scaling * (geometry.head_dim / self.rank) ** 0.5) ** 0.5
        self.key_weight = nn.Parameter(rows)
        self.query_weight = nn.Parameter(repeat_heads(rows[None], geometry.heads)[0].clone())
        self.log_temperature = nn.Parameter(torch.zeros(geometry.heads))

    def size(self) -> int:
        return 1 + self.rank + self.rank * (self.rank + 1) // 2

    def query_map(self, q: Tensor) -> Tensor:
        return _taylor(self._project_queries(q))

    def key_map(self, k: Tensor) -> Tensor:
        return _taylor(self._project_keys(k))

    def kernel(self, q: Tensor, k: Tensor) -> Tensor:
        s = self._project_queries(q) @ repeat_heads(self._project_keys(k), q.shape[1]).mT
        return 1 + s + s.square() / 2

    def _project_queries(self, q: Tensor) -> Tensor:
        """tau P q of centred queries (B, H, T, D): (B, H, T, d)."""
        weight, temperature = wide(self.query_weight, self.log_temperature)
        return _shortened(q @ (weight * temperature.exp()[:, None, None]).mT)

    def _project_keys(self, k: Tensor) -> Tensor:
        """Q k of centred keys (B, G, T, D): (B, G, T, d)."""
        (weight,) = wide(self.key_weight)
        return _shortened(k @ weight.mT)

    def fit_map(self, q: Tensor, k: Tensor) -> None:
        """Set P and Q so that s is closest to the score in the mean square, for q and k drawn independently."""
        queries, keys = closest_projections(q, k, self.rank, self.geometry.scaling)
        self.query_weight.copy_(repeat_heads(queries[None], self.geometry.heads)[0])
        self.key_weight.copy_(keys)
        self.log_temperature.zero_()


def _taylor(x: Tensor) -> Tensor:
    """The features of 1 + s + s^2 / 2, of x (..., d): (..., 1 + d + d (d + 1) / 2)."""
    d = x.shape[-1]
    products = [x[..., i:] * x[..., : d - i] for i in range(1, d)]
    return torch.cat([torch.ones_like(x[..., :1]), x, x.square() * 0.5**0.5, *products], dim=-1)


def _shortened(x: Tensor) -> Tensor:
    """x (..., d) with vectors longer than LONGEST scaled down to that length."""
    return x * (LONGEST / x.norm(dim=-1, keepdim=True).clamp(min=LONGEST))


def _orthonormal(rows: int, dim: int) -> Tensor:
    """Random orthonormal rows, (rows, dim)."""
    return nn.init.orthogonal_(torch.empty(rows, dim))
