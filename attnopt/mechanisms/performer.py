"""Performer (FAVOR+): linear attention by positive random features, whose products average to softmax's kernel.

With x' = sqrt(scaling) x, which is x / D^(1/4) at the usual scaling, and rows w of length chi(D), orthogonal in blocks,

    phi(x)_f = exp(w_f . x' - |x'|^2 / 2 - c) / sqrt F,     E phi(q) . phi(k) = exp(scaling q . k - 2 c)
    out_t = sum_{s<=t} phi(q_t) . phi(k_s) v_s / sum_{s<=t} phi(q_t) . phi(k_s)

The quotient does not change with F, with a query's |q'|^2 / 2, nor with its c, which is taken as the query's largest
exponent. For keys c is a constant of head and feature (`offset`), made up for in the queries' exponents, so that no
key's features depend on another key.

Source: Choromanski et al. 2021. Approximated: exp(scaling q . k), by products of F random features whose relative
variance is about exp(|q' + k'|^2) / F. Start: two changes that softmax does not see make that variance smaller, both
fitted to the teacher and learnable. All keys are moved by one vector, so that q' + k' is zero in the mean, and
dimensions of k are scaled up where those of q are scaled down, so that both have the same variance.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, MechanismOptions, Size, State
from attnopt.ops.linear.chunked import LIMIT, LinearState, absorb, linear_attention, recall
from attnopt.ops.tensors import repeat_heads, wide


class Performer(Mechanism):
    projection: Tensor
    offset: Tensor

    source = "https://arxiv.org/abs/2009.14794"
    paper = "Choromanski et al. 2021"
    growth = "constant"
    parallel_up_to = 256
    dense_weights = True
    cost = "F D"
    compiles = ("step",)
    random_features = "features"

    class Options(MechanismOptions):
        features: int = Field(default=64, ge=1)
        """Random features per head."""
        orthogonal: bool = True
        """Rows orthogonal in blocks of head_dim; independent ones have the larger variance."""
        trainable: bool = True
        """Whether the projection trains; else it stays as drawn."""
        centre: bool = True
        """Whether `fit` moves and scales the keys."""

    def __init__(self, geometry: Geometry, options: Options):
        super().__init__(geometry, options)
        draws = [_projection(options.features, geometry.head_dim, options.orthogonal) for _ in range(geometry.kv_heads)]
        drawn = torch.stack(draws)
        if options.trainable:
            self.projection = nn.Parameter(drawn)
        else:
            self.register_buffer("projection", drawn)
        self.key_shift = nn.Parameter(torch.zeros(geometry.kv_heads, geometry.head_dim))
        self.log_balance = nn.Parameter(torch.zeros(geometry.kv_heads, geometry.head_dim))
        self.register_buffer("offset", torch.zeros(geometry.kv_heads, options.features))

    def extend(self, x: Inputs, state: State = None) -> tuple[Tensor, State]:
        if x.q.shape[2] == 1 and state is not None:
            out, *after = self.step(x.q, x.k, x.v, *state)
            return out.to(x.q.dtype), LinearState(*after)
        out, _, state = linear_attention(x.q, x.k, x.v, state, (self.query_features, self.key_features))
        return out.to(x.q.dtype), state

    def step(self, q: Tensor, k: Tensor, v: Tensor, sums: Tensor, norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One token's output (B, H, 1, D) and the sums after it: of tensors, to be compiled."""
        phi_k = self.key_features(k)
        after = absorb(phi_k, v.to(phi_k), LinearState(sums, norm))
        return recall(self.query_features(q), after)[0], *after

    def parallel(self, x: Inputs) -> Tensor:
        weights, (v,) = self._products(x), wide(x.v)
        return (weights @ repeat_heads(v, x.q.shape[1]) / weights.sum(-1, keepdim=True)).to(x.q.dtype)

    def weights(self, x: Inputs) -> Tensor:
        weights = self._products(x)
        return weights / weights.sum(-1, keepdim=True)

    def _products(self, x: Inputs) -> Tensor:
        """(B, H, T, T) phi(q) . phi(k) of every query and the keys up to it."""
        q, k = self.query_features(x.q), self.key_features(x.k)
        return (q @ repeat_heads(k, q.shape[1]).mT).tril()

    def query_features(self, q: Tensor) -> Tensor:
        """phi of queries (B, H, T, D), up to a factor per query: (B, H, T, F), the largest of each row 1.

        The row's maximum is taken off in place and unseen by autograd. That changes no gradient, as the quotient is
        free of a factor per query; it harms no saved tensor, as neither the product nor the sum that made the
        exponents keeps its result for the backward pass.
        """
        (offset,) = wide(self.offset)
        exponents = self._query_exponents(q).add_(repeat_heads(offset[None, :, None], self.geometry.heads))
        with torch.no_grad():
            exponents -= exponents.amax(-1, keepdim=True)
        return _exp(exponents)

    def key_features(self, k: Tensor) -> Tensor:
        """phi of keys (B, G, T, D), divided by exp(offset): (B, G, T, F)."""
        (offset,) = wide(self.offset)
        return _exp(self._key_exponents(k).sub_(offset[:, None]))

    def _query_exponents(self, q: Tensor) -> Tensor:
        """w . q' of queries (B, H, T, D): (B, H, T, F)."""
        q, rows, balance = wide(q, self.projection, self.log_balance)
        rows = rows * (self.geometry.scaling**0.5 * (-balance).exp())[:, None]
        return q @ repeat_heads(rows[None], self.geometry.heads).mT

    def _key_exponents(self, k: Tensor) -> Tensor:
        """w . k' - |k'|^2 / 2 of keys (B, G, T, D), moved and scaled as fitted: (B, G, T, F)."""
        k, rows, shift, balance = wide(k, self.projection, self.key_shift, self.log_balance)
        scale = self.geometry.scaling**0.5 * balance.exp()
        k = torch.addcmul((-shift * scale)[:, None], k, scale[:, None])
        return (k @ rows.mT).sub_(k.norm(dim=-1, keepdim=True).square() / 2)

    def reference(self, x: Inputs) -> Tensor:
        return torch.stack([self._attend(x, t, t + 1) for t in range(x.q.shape[2])], dim=2)

    def _attend(self, x: Inputs, t: int, stop: int) -> Tensor:
        """The output (B, H, D) of query t over the first `stop` tokens, from the logarithms of the kernel."""
        heads = x.q.shape[1]
        keys = repeat_heads(self._key_exponents(x.k[:, :, :stop]), heads)
        logs = (self._query_exponents(x.q[:, :, t : t + 1]) + keys).logsumexp(-1)
        return torch.einsum("bhs,bhsd->bhd", logs.softmax(-1), repeat_heads(x.v[:, :, :stop], heads))

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        per_head = self.options.features * (self.geometry.head_dim + 1)
        return batch * self.geometry.kv_heads * per_head * max(dtype.itemsize, torch.float32.itemsize)

    @classmethod
    def sizes(cls, geometry: Geometry, options: Options) -> tuple[Size, ...]:
        return (Size(("features",)),)

    @torch.no_grad()
    def fit(self, x: Inputs) -> None:
        if self.options.centre:
            q, k = wide(x.q, x.k)
            q_mean, q_variance = _moments(q.unflatten(1, (k.shape[1], -1)).flatten(2, 3))
            k_mean, k_variance = _moments(k)
            self.log_balance.copy_((q_variance / k_variance).log() / 4)
            self.key_shift.copy_(k_mean + q_mean * (-2 * self.log_balance).exp())
        self.offset.copy_(self._key_exponents(x.k).mean((0, 2)))


def _exp(exponents: Tensor) -> Tensor:
    """exp of the exponents, bounded to +-LIMIT first; all in place, so the argument must not be used afterwards.

    The bound is not recorded, so that the gradient passes through it: that of exp at the bound, never zero. It is safe,
    although autograd recorded the exponents: the sums and differences that made them keep nothing for their backward
    pass, and exp_ keeps its own result, which is written after the bound and not touched again.
    """
    with torch.no_grad():
        exponents.clamp_(-LIMIT, LIMIT)
    return exponents.exp_()


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (G, D) over sequences and tokens of x (B, G, T, D)."""
    return x.mean((0, 2)), x.var((0, 2), correction=0) + 1e-6


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
