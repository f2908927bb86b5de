"""Keys and values of a layer through one low-rank map: a token is kept as r numbers, all its heads together.

Of a token s let z_s be the 2 G D numbers of its keys and values, keys divided by their standard deviation over the
fitting data and values by theirs, so that neither has all of the rank. The latent that is kept, and what is read of it:

    c_s = E (z_s - mu),     z'_s = mu + U c_s,     k'_s, v'_s the parts of z'_s, scaled back

Query t attends, in one softmax, to k'_s and v'_s of all s <= t, itself included. In a decoding step they are not made:
q . k'_s = (U_k^T q) . c_s but for a number that all tokens share, and U_v is applied to the mean of the latents.

Source: Meng et al. 2025 (TransMLA), and MHA2MLA, arXiv:2502.14837. Approximated: what of keys and values lies outside
the r directions. Start: `fit` sets mu to the mean, and U = E^T to the r directions in which the teacher's z varies
most, which is the least squared error that rank r has. At full rank, r = 2 G D, it equals softmax. Without rotary
positions it does so from r = C on, as keys and values are linear in C hidden numbers: half of the state where G = H and
H D = C. Before `fit` the directions are the first r coordinates. Nothing is trained.

With rotary positions keys arrive rotated, and the latent is of rotated keys: there is no part without positions beside
them, as the two papers have it by changing the model. Rotation spreads keys over more directions, so a rotary model
wants a higher rank, and positions beyond those of the fitting data may leave the directions found there.
"""

from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, MechanismOptions, State
from attnopt.ops.growing import Tokens
from attnopt.ops.softmax.causal import causal_attention
from attnopt.ops.tensors import repeat_heads, wide


class Latents(NamedTuple):
    """The state.

    Attributes:
        c: (B, 1, S, r) the latent of each token.
    """

    c: Tokens


class LowRank(Mechanism):
    source = "https://arxiv.org/abs/2502.07864"
    paper = "Meng et al. 2025"
    growth = "linear"
    cost = "S r"

    class Options(MechanismOptions):
        rank: Annotated[int, Field(ge=1)] | None = 8
        """r: numbers kept per token, of the 2 G D in all keys and values of a layer; null: all of them."""

    encoder: Tensor
    decoder: Tensor
    mean: Tensor

    def __init__(self, geometry: Geometry, options: Options):
        super().__init__(geometry, options)
        groups, width = geometry.kv_heads, 2 * geometry.head_dim
        full = groups * width
        self.rank = options.rank or full
        if self.rank > full:
            raise ValueError(f"rank: {self.rank} is more than all keys and values of a layer have, {full}")
        directions = torch.eye(full)[: self.rank].unflatten(1, (groups, width)).transpose(0, 1)
        self.register_buffer("decoder", directions.clone())
        self.register_buffer("encoder", groups * directions.mT.clone())
        self.register_buffer("mean", torch.zeros(groups, width))
        self.normalised = self.rank == full

    def extend(self, x: Inputs, state: Latents | None = None) -> tuple[Tensor, State]:
        new = self.encode(x.k, x.v)
        c = Tokens(new) if state is None else state.c.append(new)
        (q,) = wide(x.q)
        if x.q.shape[2] == 1:
            out = self._step(q, c.tensor.to(q.dtype))
        else:
            out = causal_attention(q, *self.decode(c.tensor), self.geometry.scaling)
        return out.to(x.q.dtype), Latents(c)

    def encode(self, k: Tensor, v: Tensor) -> Tensor:
        """The latents (B, 1, T, r) of tokens, k and v (B, G, T, D), in their dtype."""
        (z,) = wide(torch.cat([k, v], 3))
        z = z - self.mean.to(z.dtype)[:, None]
        return (torch.einsum("bgtw,gwr->btr", z, self.encoder.to(z.dtype)) / z.shape[1])[:, None].to(k.dtype)

    def decode(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """What is read of latents (B, 1, T, r) as keys and values, (B, G, T, D) in at least float32."""
        (c,) = wide(c)
        z = torch.einsum("btr,grw->bgtw", c[:, 0], self.decoder.to(c.dtype)) + self.mean.to(c.dtype)[:, None]
        k, v = z.chunk(2, dim=3)
        return k, v

    def _step(self, q: Tensor, c: Tensor) -> Tensor:
        """The output (B, H, 1, D) of one query (B, H, 1, D) over latents (B, 1, S, r), of which no key is made."""
        to_k, to_v = self.decoder.to(q.dtype).chunk(2, dim=2)
        mean_v = self.mean.to(q.dtype).chunk(2, dim=1)[1]
        grouped = q.unflatten(1, (len(to_k), -1))
        inner = torch.einsum("bgjtd,grd->bgjtr", grouped, to_k).flatten(1, 2)
        out = causal_attention(inner, c, c, self.geometry.scaling).view(*grouped.shape[:4], -1)
        return (torch.einsum("bgjtr,grd->bgjtd", out, to_v) + mean_v[:, None, None]).flatten(1, 2)

    @torch.no_grad()
    def fit(self, x: Inputs) -> None:
        parts = [t.transpose(0, 1).flatten(1, 2).double() for t in (x.k, x.v)]  # (G, n, D)
        means = [t.mean(1) for t in parts]
        scales = [(t - m[:, None]).square().mean().sqrt().clamp(min=1e-12) for t, m in zip(parts, means, strict=True)]
        scale = torch.stack(scales).repeat_interleave(x.k.shape[3])  # (2 D,)
        z = (torch.cat(parts, 2) - torch.cat(means, 1)[:, None]) / scale
        rows = z.transpose(0, 1).flatten(1)
        directions = torch.linalg.eigh(rows.mT @ rows).eigenvectors.flip(1)[:, : self.rank]
        directions = directions.unflatten(0, (len(z), -1))
        self.mean.copy_(torch.cat(means, 1))
        self.encoder.copy_(len(z) * directions / scale[:, None])
        self.decoder.copy_(directions.mT * scale)

    def reference(self, x: Inputs) -> Tensor:
        heads, keys, values, outs = x.q.shape[1], [], [], []
        for t in range(x.q.shape[2]):
            z = torch.cat([x.k[:, :, t], x.v[:, :, t]], 2) - self.mean
            c = torch.stack([z[:, g] @ self.encoder[g] for g in range(len(self.encoder))]).mean(0)
            z = torch.stack([c @ self.decoder[g] + self.mean[g] for g in range(len(self.decoder))], 1)
            keys.append(z[..., : x.k.shape[3]])
            values.append(z[..., x.k.shape[3] :])
            k, v = (repeat_heads(torch.stack(read, 2), heads) for read in (keys, values))
            scores = torch.einsum("bhd,bhsd->bhs", x.q[:, :, t], k) * self.geometry.scaling
            outs.append(torch.einsum("bhs,bhsd->bhd", scores.softmax(-1), v))
        return torch.stack(outs, dim=2)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        return batch * length * self.rank * dtype.itemsize

    @classmethod
    def limit(cls, length: int) -> Options:
        return cls.Options(rank=None)

    @classmethod
    def conformance_options(cls) -> dict[str, Options]:
        return {"default": cls.Options(), "one number": cls.Options(rank=1)}
