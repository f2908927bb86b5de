"""The recurrence of `retention` and `gla`: one state that decays, and beside it a normaliser that decays along."""

from typing import Any

import torch
from torch import Tensor

from attnopt.mechanisms.base import Inputs
from attnopt.mechanisms.shared.recurrent import Recurrent
from attnopt.ops.linear.decayed import decayed_attention
from attnopt.ops.softmax.dense import ages, only
from attnopt.ops.softmax.spans import merge
from attnopt.ops.tensors import repeat_heads, wide

Sums = tuple[Tensor, ...]


class Normalised(Recurrent):
    """far_t = sum_s w_ts v_s / n_t. One sum, (B, G, F, D + 1): the normaliser is a column of values, all ones."""

    def __init__(self, geometry: Any, options: Any, channels: bool = False, reads: bool = True):
        super().__init__(geometry, options, channels, reads)
        self.dense_weights = options.branches != "window"

    def sum_sizes(self) -> tuple[int, ...]:
        return (self.size() * (self.geometry.head_dim + 1),)

    def recur(
        self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, written: Tensor | None, sums: Sums | None
    ) -> tuple[Tensor, Tensor, Sums]:
        values = torch.cat([v, torch.ones_like(v[..., :1])], -1)
        total, after = decayed_attention(q, k, values, decay, None if sums is None else sums[0])
        norm = total[..., -1]
        return total[..., :-1] / norm[..., None], norm, (after,)

    def recur_once(
        self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, written: Tensor | None, sums: Sums | None
    ) -> tuple[Tensor, Tensor, Sums]:
        total, norm = sums or (torch.zeros_like(k[..., None] * v[..., None, :]), torch.zeros_like(k))
        total = decay[..., None].exp() * total + k[..., None] * v[..., None, :]
        norm = decay.exp() * norm + k
        mass = (q * repeat_heads(norm, q.shape[1])).sum(-1)
        return torch.einsum("bhf,bhfd->bhd", q, repeat_heads(total, q.shape[1])) / mass[..., None], mass, (total, norm)

    def weights(self, x: Inputs) -> Tensor:
        """As `Mechanism.weights`: the far part's output where values are unit vectors, beside dense near weights."""
        window, tokens = self.options.window, x.q.shape[2]
        (q,) = wide(x.q)
        units = torch.eye(tokens, dtype=q.dtype, device=q.device).expand(*x.k.shape[:2], -1, -1)
        first = window + self.sinks
        far: Any = None
        if tokens > first:
            joining = slice(self.sinks, tokens - window)
            out, norm, _ = self._far(x.slice(first), x.k[:, :, joining], units[:, :, joining], None, None)
            far = out, norm.log()
        if not window:
            return far[0]
        age = ages(tokens, q)
        sinks = torch.arange(tokens, device=q.device) < self.sinks
        exact = age == 0 if self.options.branches == "far" else (age >= 0) & ((age < window) | sinks)
        scores = q @ repeat_heads(self.centre.keys(x.k), q.shape[1]).mT * self.geometry.scaling + only(exact, q)
        near, near_log = scores.softmax(-1), scores.logsumexp(-1)
        if far is None:
            return near
        late = near[:, :, first:], near_log[:, :, first:]
        joined, _ = merge(late, (far[0], far[1] + self._far_log()))
        return torch.cat([near[:, :, :first], joined], 2)
