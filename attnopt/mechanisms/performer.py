"""Performer: softmax's kernel as a product of positive random features (FAVOR+, Choromanski et al. 2021).

With x' = sqrt(scaling) x, which is x / D^(1/4) at the usual scaling, and rows w of length chi(D), orthogonal in blocks,

    phi(x)_f = exp(w_f . x' - |x'|^2 / 2 - c) / sqrt F,     E phi(q) . phi(k) = exp(scaling q . k - 2 c)
    out_t = sum_{s<=t} phi(q_t) . phi(k_s) v_s / sum_{s<=t} phi(q_t) . phi(k_s)

The quotient is free of a query's |q'|^2 / 2, of its c (its own largest exponent) and of F. A key's c is a constant per
head, so no key sees another. The relative error of a kernel entry grows like exp(|q' + k'|^2 / 2), hence the fit: both
means taken out (`_centre`), and each dimension scaled so that queries and keys share its length evenly.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from attnopt.mechanisms._centre import LIMIT, Centre
from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, MechanismOptions, State, repeat_heads, wide
from attnopt.ops.linear import linear_attention


class Performer(Mechanism):
    projection: Tensor
    offset: Tensor

    source = "https://arxiv.org/abs/2009.14794"
    growth = "constant"
    cost = "F D"

    class Options(MechanismOptions):
        features: int = Field(default=64, ge=1)
        """Random features per head."""
        orthogonal: bool = True
        """Rows orthogonal in blocks of head_dim; independent ones have the larger variance."""
        trainable: bool = True
        """Whether the projection trains; else it stays as drawn."""
        centre: bool = True
        """Whether `fit` takes out the means of queries and keys and balances their lengths."""

    def __init__(self, geometry: Geometry, options: Options):
        super().__init__(geometry, options)
        draws = [_projection(options.features, geometry.head_dim, options.orthogonal) for _ in range(geometry.kv_heads)]
        drawn = torch.stack(draws)
        if options.trainable:
            self.projection = nn.Parameter(drawn)
        else:
            self.register_buffer("projection", drawn)
        self.centre = Centre(geometry)
        self.log_balance = nn.Parameter(torch.zeros(geometry.kv_heads, geometry.head_dim))
        self.register_buffer("offset", torch.zeros(geometry.kv_heads))

    def extend(self, x: Inputs, state: State = None) -> tuple[Tensor, State]:
        out, _, state = linear_attention(x.q, x.k, x.v, state, (self.query_features, self.key_features))
        return out.to(x.q.dtype), state

    def query_features(self, q: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, H, T, F), each row relative to its largest."""
        exponents = self._query_exponents(q)
        return (exponents - exponents.detach().amax(-1, keepdim=True)).clamp(min=-LIMIT).exp()

    def key_features(self, k: Tensor) -> Tensor:
        """(B, G, T, D) -> (B, G, T, F), relative to exp(offset)."""
        return (self._key_exponents(k) - wide(self.offset)[0][:, None, None]).clamp(-LIMIT, LIMIT).exp()

    def _query_exponents(self, q: Tensor) -> Tensor:
        """w . q'"""
        rows, balance = wide(self.projection, self.log_balance)
        rows = rows * (self.geometry.scaling**0.5 * (-balance).exp())[:, None]
        return self.centre.queries(q) @ repeat_heads(rows[None], self.geometry.heads).mT

    def _key_exponents(self, k: Tensor) -> Tensor:
        """w . k' - |k'|^2 / 2 + the key's log weight"""
        rows, balance = wide(self.projection, self.log_balance)
        k = self.centre.keys(k)
        scaled = k * (self.geometry.scaling**0.5 * balance.exp())[:, None]
        shift = self.centre.log_weight(k) - scaled.square().sum(-1) / 2
        return scaled @ rows.mT + shift[..., None]

    def reference(self, x: Inputs) -> Tensor:
        return torch.stack([self._attend(x, t, t + 1) for t in range(x.q.shape[2])], dim=2)

    def _attend(self, x: Inputs, t: int, stop: int) -> Tensor:
        """(B, H, D) what query t makes of the first `stop` tokens, from the logarithms of the kernel."""
        heads = x.q.shape[1]
        keys = repeat_heads(self._key_exponents(x.k[:, :, :stop]), heads)
        logs = (self._query_exponents(x.q[:, :, t : t + 1]) + keys).logsumexp(-1)
        return torch.einsum("bhs,bhsd->bhd", logs.softmax(-1), repeat_heads(x.v[:, :, :stop], heads))

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        per_head = self.options.features * (self.geometry.head_dim + 1)
        return batch * self.geometry.kv_heads * per_head * max(dtype.itemsize, torch.float32.itemsize)

    @torch.no_grad()
    def fit(self, x: Inputs) -> None:
        if self.options.centre:
            self.centre.fit(x.q, x.k)
            self._fit_balance(x)
        self.offset.copy_(self._key_exponents(x.k).logsumexp(-1).mean((0, 2)))

    def _fit_balance(self, x: Inputs) -> None:
        """E q_d^2 = E k_d^2 in every dimension d: the least |q'|^2 + |k'|^2 at the same products q_d k_d."""
        q, k = self.centre.queries(x.q).square().mean((0, 2)), self.centre.keys(x.k).square().mean((0, 2))
        q = q.unflatten(0, (len(k), -1)).mean(1)
        self.log_balance.copy_(((q + 1e-6) / (k + 1e-6)).log() / 4)


def _projection(features: int, dim: int, orthogonal: bool) -> Tensor:
    """(features, dim) rows of the lengths of normal vectors; orthogonal within each block of `dim` rows, or normal."""
    normal = torch.randn(features, dim)
    if not orthogonal:
        return normal
    blocks = [_rotation(dim) for _ in range(-(-features // dim))]
    return torch.cat(blocks)[:features] * normal.norm(dim=1, keepdim=True)


def _rotation(dim: int) -> Tensor:
    """(dim, dim) uniformly distributed orthogonal matrix."""
    q, r = torch.linalg.qr(torch.randn(dim, dim))
    return q * r.diagonal().sign()
