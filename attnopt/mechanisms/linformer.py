"""Linformer made causal: completed segments projected along the sequence to a few slots, the open segment exact.

Positions are cut into segments of c tokens. A completed one becomes r slots per key/value head,

    k'_j = sum_i E_ji k_i,   v'_j = sum_i F_ji v_i,   sum_i E_ji = sum_i F_ji = 1,   j = 1 .. r

and query t attends, in one softmax, to the slots of the segments before its own and to the tokens of its own up to t:

    scores   scaling q_t . k'_j + log(c / r)   and   scaling q_t . k_s

log(c / r) gives a slot the mass of the c / r tokens that it stands for. E and F learn; what a row lacks to a sum of 1
is added to it in equal shares.

Source: Wang et al. 2020. As published, with E over all positions, the mechanism cannot be causal; segments make it so.
Approximated: the tokens of completed segments, by their slots. Start: E and F are means over c / r neighbouring tokens,
so that r = c starts as the identity and equals softmax; there is nothing to fit.

With rotary positions the keys arrive rotated, each to its own position, and are pooled so: pairs that turn by much of a
circle within c / r tokens are averaged out of the slots, slowly turning pairs are kept.
"""

import math
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, MechanismOptions, State
from attnopt.ops.growing import Tokens
from attnopt.ops.softmax.blocks import earlier_blocks_attention, own_block_attention
from attnopt.ops.softmax.spans import merge, zero_empty
from attnopt.ops.tensors import own_copy, repeat_heads, wide


class Segments(NamedTuple):
    """The state: slots of all completed segments, and the tokens of the open one.

    Attributes:
        slot_k: (B, G, n r, D) keys of the slots of n completed segments.
        slot_v: (B, G, n r, D) their values.
        k: (B, G, m, D) keys of the m < c tokens of the open segment.
        v: (B, G, m, D) their values.
    """

    slot_k: Tokens
    slot_v: Tokens
    k: Tensor
    v: Tensor


class Linformer(Mechanism):
    source = "https://arxiv.org/abs/2006.04768"
    paper = "Wang et al. 2020"
    growth = "linear"
    cost = "(S r / c + c) D"

    class Options(MechanismOptions):
        segment: Annotated[int, Field(ge=1)] = 16
        """c: tokens per segment."""
        slots: Annotated[int, Field(ge=1)] = 4
        """r: slots that a completed segment is projected to; a divisor of c."""
        branches: Literal["both", "window", "far"] = "both"
        """Only the open segment (window) or only the slots (far; zero where there are none), to see what each does."""

        @model_validator(mode="after")
        def _divides(self) -> "Linformer.Options":
            if self.segment % self.slots:
                raise ValueError(f"slots: {self.slots} does not divide segment, {self.segment}")
            return self

    def __init__(self, geometry: Geometry, options: Options):
        super().__init__(geometry, options)
        if options.branches != "window":
            share = options.segment // options.slots
            mean = torch.eye(options.slots).repeat_interleave(share, dim=1) / share
            self.pool_k = nn.Parameter(mean.repeat(geometry.kv_heads, 1, 1))
            self.pool_v = nn.Parameter(mean.repeat(geometry.kv_heads, 1, 1))
        self.normalised = options.branches != "far"

    def extend(self, x: Inputs, state: Segments | None = None) -> tuple[Tensor, State]:
        old, scaling = state or self._empty(x), self.geometry.scaling
        segment, slots = self.options.segment, self.options.slots
        k, v = torch.cat([old.k, x.k], 2), torch.cat([old.v, x.v], 2)
        slot_k, slot_v = old.slot_k, old.slot_v
        done = k.shape[2] - k.shape[2] % segment
        if done and self.options.branches != "window":
            slot_k = slot_k.append(pool(self.pool_k, k[:, :, :done]))
            slot_v = slot_v.append(pool(self.pool_v, v[:, :, :done]))
        parts = []
        if self.options.branches != "far":
            parts.append(own_block_attention(x.q, k, v, segment, scaling))
        if slot_k.count:
            seen, mass = old.slot_k.count // slots * segment + old.k.shape[2], math.log(segment / slots)
            far = slot_k.tensor, slot_v.tensor, seen, segment, slots
            parts.append(earlier_blocks_attention(x.q, *far, scaling, mass))
        out = zero_empty(*merge(*parts)).to(x.q.dtype) if parts else x.q * 0
        return out, Segments(slot_k, slot_v, own_copy(k[:, :, done:]), own_copy(v[:, :, done:]))

    def _empty(self, x: Inputs) -> Segments:
        """The state before the first token."""
        k, v = own_copy(x.k[:, :, :0]), own_copy(x.v[:, :, :0])
        return Segments(Tokens(k), Tokens(v), k, v)

    def reference(self, x: Inputs) -> Tensor:
        segment, mass = self.options.segment, math.log(self.options.segment / self.options.slots)
        far, near = (self.options.branches in ("both", branch) for branch in ("far", "window"))
        outs, slots_k, slots_v = [], [], []
        for t in range(x.q.shape[2]):
            start = t - t % segment
            if far and t and t == start:
                slots_k.append(pool(self.pool_k, x.k[:, :, t - segment : t]))
                slots_v.append(pool(self.pool_v, x.v[:, :, t - segment : t]))
            k, v, biases = [*slots_k], [*slots_v], [mass] * self.options.slots * len(slots_k)
            if near:
                k.append(x.k[:, :, start : t + 1])
                v.append(x.v[:, :, start : t + 1])
                biases += [0.0] * (t + 1 - start)
            outs.append(self._attend(x.q[:, :, t], k, v, biases) if k else x.q[:, :, t] * 0)
        return torch.stack(outs, dim=2)

    def _attend(self, q: Tensor, k: list[Tensor], v: list[Tensor], biases: list[float]) -> Tensor:
        """The output (B, H, D) of one query q (B, H, D), over lists of keys and values (B, G, n, D)."""
        keys, values = (repeat_heads(torch.cat(t, 2), q.shape[1]) for t in (k, v))
        scores = torch.einsum("bhd,bhsd->bhs", q, keys) * self.geometry.scaling + q.new_tensor(biases)
        return torch.einsum("bhs,bhsd->bhd", scores.softmax(-1), values)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        far = length // self.options.segment * self.options.slots if self.options.branches != "window" else 0
        tokens = far + length % self.options.segment
        return 2 * batch * self.geometry.kv_heads * tokens * self.geometry.head_dim * dtype.itemsize

    @classmethod
    def limit(cls, length: int) -> Options:
        return cls.Options(segment=16, slots=16)

    @classmethod
    def conformance_options(cls) -> dict[str, Options]:
        return {
            "default": cls.Options(),
            "window": cls.Options(branches="window"),
            "far": cls.Options(segment=6, slots=2, branches="far"),
        }


def pool(weight: Tensor, x: Tensor) -> Tensor:
    """The slots of whole segments.

    Args:
        weight: (G, r, c), E or F; what a row lacks to a sum of 1 is added to it in equal shares.
        x: (B, G, n c, D), the tokens of n segments.

    Returns: (B, G, n r, D) in x's dtype.
    """
    tokens, weight = wide(x, weight)
    weight = (weight + (1 - weight.sum(-1, keepdim=True)) / weight.shape[-1]).to(tokens.dtype)
    segments = tokens.unflatten(2, (-1, weight.shape[-1]))
    return torch.einsum("grc,bgncd->bgnrd", weight, segments).flatten(2, 3).to(x.dtype)
