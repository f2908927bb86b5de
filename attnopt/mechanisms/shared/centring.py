"""Queries and keys moved to where a kernel approximates exp best, without changing softmax.

With key mean mu and query mean nu of a key/value head,

    q . k = (q - nu) . (k - mu) + nu . (k - mu) + q . mu

The last term is the same for all keys of a query, so softmax drops it. The middle one is a weight per key,
exp(scaling nu . (k - mu)), which linear attention takes into the key's features. What is left to approximate is the
product of two shorter vectors. Any mu and nu are exact; the fit takes the means of the teacher's keys and queries.
"""

import torch
from torch import Tensor, nn

from attnopt.mechanisms.base import Geometry
from attnopt.ops.linear.chunked import LIMIT
from attnopt.ops.tensors import repeat_heads, wide


class Centre(nn.Module):
    """The means mu (`key_mean`) and nu (`query_mean`), (G, D) each: zero until fitted, and learnable."""

    def __init__(self, geometry: Geometry):
        super().__init__()
        self.heads, self.scaling = geometry.heads, geometry.scaling
        self.key_mean = nn.Parameter(torch.zeros(geometry.kv_heads, geometry.head_dim))
        self.query_mean = nn.Parameter(torch.zeros(geometry.kv_heads, geometry.head_dim))

    def queries(self, q: Tensor) -> Tensor:
        """q - nu, (B, H, T, D), at least float32."""
        q, mean = wide(q, self.query_mean)
        return q - repeat_heads(mean[None, :, None], self.heads)

    def keys(self, k: Tensor) -> Tensor:
        """k - mu, (B, G, T, D), at least float32."""
        k, mean = wide(k, self.key_mean)
        return k - mean[:, None]

    def log_weight(self, k: Tensor) -> Tensor:
        """The log of a key's own weight, scaling nu . k, (B, G, T), of centred keys k (B, G, T, D)."""
        (mean,) = wide(self.query_mean)
        return (k @ mean[..., None])[..., 0] * self.scaling

    def weight(self, k: Tensor, offset: Tensor) -> Tensor:
        """A key's own weight over exp(offset), (B, G, T, 1), of centred keys k (B, G, T, D); offset (G,)."""
        log_weight = self.log_weight(k) - wide(offset)[0][:, None]
        return log_weight.clamp(-LIMIT, LIMIT).exp()[..., None]

    def dropped(self, q: Tensor) -> Tensor:
        """The term that softmax drops, scaling q . mu, (B, H, T), of queries (B, H, T, D) as they came."""
        q, mean = wide(q, self.key_mean)
        return (q @ repeat_heads(mean[None, ..., None], self.heads))[..., 0] * self.scaling

    @torch.no_grad()
    def fit(self, q: Tensor, k: Tensor) -> None:
        """Set the means to those of the teacher's q (B, H, T, D), all heads of a group together, and k (B, G, T, D)."""
        q, k = wide(q, k)
        self.key_mean.copy_(k.mean((0, 2)))
        self.query_mean.copy_(q.mean((0, 2)).unflatten(0, (k.shape[1], -1)).mean(1))


def far_log(offset: Tensor, log_mass: Tensor) -> Tensor:
    """What is added to the log of a far sum, (H, 1): the offset (G,) that features leave out, a learned mass (H,)."""
    offset, mass = wide(offset, log_mass)
    return (repeat_heads(offset[None], len(mass))[0] + mass)[:, None]
