"""Gated DeltaNet: a decaying state that erases under a key before it writes there, alone or behind a softmax window.

    S'_t = a_t S_{t-1},   S_t = S'_t + b_s k_s ((v_s - m_t) - k_s S'_t)^T,   far_t = m_t + g q_t S_t

k and q are phi(k) and phi(q) at unit length, m_t is the decaying average of the values that have joined, so that the
state holds what values are beyond it, and g a learnable scale per head. The log of the far part's mass is that of gated
linear attention's normaliser, n_t = sum_s w_ts, which decays beside the state (`shared/recurrent.py`, with phi and the
gates' fit). The gates are log a_t = -softplus(b + W h_t) of the token that is present and the write strength
b_s = sigmoid(c + W' h_s) of the token that is written, which is remembered with the window. `channels: true` gives each
feature its own a (Kimi Delta Attention); m then decays by their geometric mean.

Source: Yang et al. 2025; Kimi Team 2025 (arXiv:2510.26692) for the channels; Taylor-Calibrate (arXiv:2606.16429) for
the fit: a by the mean look-back, b = 0.3 + 0.4 (1 - normalised entropy of the teacher's weights), g by least squares in
[0.1, 10]. Approximated: softmax on far tokens, by an online regression of values on keys.

The average m is not in the papers. Without it the first reads of a converted layer are too short, as the state starts
from zeros, and reads divided by the rule's own response to ones are unstable, as that may be near zero.
"""

from typing import Any

import torch
from torch import Tensor, nn

from attnopt.mechanisms.base import Geometry
from attnopt.mechanisms.shared.gates import Gate, logit_of
from attnopt.mechanisms.shared.look_back import Far, mean_entropy, per_group
from attnopt.mechanisms.shared.recurrent import Recurrent
from attnopt.ops.linear.decayed import decayed_attention
from attnopt.ops.linear.delta import delta_attention
from attnopt.ops.tensors import repeat_heads, wide

Sums = tuple[Tensor, ...]


class GatedDelta(Recurrent):
    source = "https://arxiv.org/abs/2412.06464"
    paper = "Yang et al. 2025"
    cost = "(w + f) D + F D"
    remembers = True

    class Options(Recurrent.Options):
        channels: bool = False
        """Whether each feature has a decay of its own, as in Kimi Delta Attention; else there is one per head."""

    def __init__(self, geometry: Geometry, options: Any):
        super().__init__(geometry, options, channels=options.channels)
        self.remembers = bool(options.window)
        self.write = Gate(geometry)
        self.read_scale = nn.Parameter(torch.ones(geometry.heads))

    def sum_sizes(self) -> tuple[int, ...]:
        """Of S, of n's keys, and of m and its weight."""
        return self.size() * self.geometry.head_dim, self.size(), self.geometry.head_dim + 1

    def strength(self, hidden: Tensor | None, k: Tensor) -> Tensor:
        return self.write(hidden, k).sigmoid()

    def recur(
        self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, written: Tensor | None, sums: Sums | None
    ) -> tuple[Tensor, Tensor, Sums]:
        assert written is not None
        rule, norms, means = sums or (None, None, None)
        ones, weight = torch.ones_like(v[..., :1]), k.sum(-1, keepdim=True)
        norm, norms = decayed_attention(q, k, ones, decay, norms)
        total, means = decayed_attention(ones, weight, torch.cat([v, ones], -1), decay.mean(-1, keepdim=True), means)
        mean = total[..., :-1] / total[..., -1:]
        out, rule = delta_attention(_unit(q), _unit(k), v - mean, decay, written.to(q), rule)
        (scale,) = wide(self.read_scale)
        out = repeat_heads(mean, q.shape[1]) + scale[:, None, None] * out
        return out, norm[..., 0], (rule, norms, means)

    def recur_once(
        self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, written: Tensor | None, sums: Sums | None
    ) -> tuple[Tensor, Tensor, Sums]:
        assert written is not None
        rule, norms, total, mass = sums or (k[..., None] * v[..., None, :] * 0, k * 0, v * 0, v[..., :1] * 0)
        weight, fade = k.sum(-1, keepdim=True), decay.mean(-1, keepdim=True).exp()
        norms, total, mass = decay.exp() * norms + k, fade * total + weight * v, fade * mass + weight
        key, rule = k / k.norm(dim=-1, keepdim=True), decay[..., None].exp() * rule
        surprise = v - total / mass - torch.einsum("bgf,bgfd->bgd", key, rule)
        rule = rule + key[..., None] * (written * surprise)[..., None, :]
        heads, query = q.shape[1], q / q.norm(dim=-1, keepdim=True)
        out = torch.einsum("bhf,bhfd->bhd", query, repeat_heads(rule, heads)) * self.read_scale[:, None]
        out = out + repeat_heads(total / mass, heads)
        return out, (q * repeat_heads(norms, heads)).sum(-1), (rule, norms, total, mass)

    def fit_read(self, far: Far, scores: Tensor) -> None:
        """The write strength by the entropy of the weights, and the scale of the read by least squares."""
        groups, heads = far.k.shape[1], self.geometry.heads
        self.write.set(logit_of(0.3 + 0.4 * (1 - per_group(mean_entropy(scores), groups))))
        q, k, (v,) = self.queries(far.q), self.keys(far.k), wide(far.v)
        self.read_scale.zero_()
        mean, *_ = self.recur(q, k, v, self.decays(None, k), self.strength(None, k), None)
        self.read_scale.fill_(1.0)
        read, *_ = self.recur(q, k, v, self.decays(None, k), self.strength(None, k), None)
        wanted, read = scores.softmax(-1) @ repeat_heads(v, heads) - mean, read - mean
        scale = (wanted * read).sum((0, 2, 3)) / read.square().sum((0, 2, 3)).clamp(min=1e-12)
        self.read_scale.copy_(scale.clamp(0.1, 10))

    @classmethod
    def conformance_options(cls) -> dict[str, Recurrent.Options]:
        return super().conformance_options() | {"channels": cls.Options(window=8, sinks=3, channels=True)}


def _unit(x: Tensor) -> Tensor:
    """Features (..., F), which are above zero, at Euclidean length one."""
    return x / x.norm(dim=-1, keepdim=True)
