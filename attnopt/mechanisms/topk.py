"""The bound on all that select tokens: softmax over the k largest scores of each query, found by reading every key.

    out_t = sum_s p_ts v_s,   p_ts = softmax over the k largest of  scaling q_t . k_s,  s <= t

Each query head chooses for itself, the earliest tokens where scores are equal. It costs all of softmax and saves
nothing: it is a control, which says how much of the weight can be reached by reading k tokens. It bounds the weight,
not the output's error: where attention is spread wide, the largest scores are no fair sample of the values, and the
last k tokens may come closer to their mean.

Source: Gupta et al. 2021. Approximated: all other tokens have no weight. Start: the scores are the teacher's own, there
is nothing to fit and nothing to train.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from attnopt.mechanisms.base import Inputs, Mechanism, MechanismOptions, State
from attnopt.mechanisms.softmax import SoftmaxState
from attnopt.ops.growing import Tokens
from attnopt.ops.softmax.spans import QUERY_SPAN, Part, attend, in_spans
from attnopt.ops.tensors import MASKED, own_copy, repeat_heads, wide


class TopK(Mechanism):
    source = "https://arxiv.org/abs/2106.06899"
    paper = "Gupta et al. 2021"
    growth = "linear"
    cost = "S D"

    class Options(MechanismOptions):
        keep: Annotated[int, Field(ge=1)] = 16
        """k: tokens that each query reads, itself or not."""

    def extend(self, x: Inputs, state: SoftmaxState | None = None) -> tuple[Tensor, State]:
        if state is None:
            after = SoftmaxState(Tokens(own_copy(x.k)), Tokens(own_copy(x.v)))
            keys = x.k, x.v
        else:
            after = SoftmaxState(state.k.append(x.k), state.v.append(x.v))
            keys = after.k.tensor, after.v.tensor
        return self._attend(x.q, *keys).to(x.q.dtype), after

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The output of queries q (B, H, T, D), whose own tokens are the last T of k and v (B, G, S, D)."""
        q, k, v = wide(q, k, v)
        group, seen = (k.shape[1], q.shape[1] // k.shape[1]), k.shape[2] - q.shape[2]

        def cut(start: int, stop: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
            return q[:, :, start:stop], k[:, :, : seen + stop], v[:, :, : seen + stop]

        def attend_span(start: int, stop: int, q: Tensor, k: Tensor, v: Tensor) -> Part:
            rows = q.unflatten(1, group).flatten(2, 3)
            out, lse = attend(rows, k, v, self._mask(rows, k, stop - start), self.geometry.scaling)
            return out.reshape(q.shape), lse.reshape(q.shape[:3])

        return in_spans(attend_span, cut, (q, k, v), q.shape[2], QUERY_SPAN // 4)[0]

    @torch.no_grad()
    def _mask(self, q: Tensor, k: Tensor, tokens: int) -> Tensor:
        """0 for the keys that are read and MASKED for the others, (B, G, R T, S).

        Args:
            q: (B, G, R T, D), the queries of a group's R heads, head by head.
            k: (B, G, S, D), the last T of which are the queries' own.
            tokens: T.
        """
        count = k.shape[2]
        later = torch.ones(tokens, count, dtype=torch.bool, device=q.device).triu(count - tokens + 1)
        scores = (q @ k.mT).unflatten(2, (-1, tokens)).masked_fill_(later, -torch.inf).flatten(2, 3)
        least = scores.topk(min(self.options.keep, count), sorted=True).values[..., -1:]
        more, equal = scores > least, scores == least
        room = self.options.keep - more.sum(-1, keepdim=True)
        read = more | (equal & (equal.cumsum(-1) <= room) & (scores > -torch.inf))
        return torch.zeros_like(scores).masked_fill_(~read, MASKED)

    def reference(self, x: Inputs) -> Tensor:
        heads = x.q.shape[1]
        k, v, outs = repeat_heads(x.k, heads), repeat_heads(x.v, heads), []
        for t in range(x.q.shape[2]):
            scores = torch.einsum("bhd,bhsd->bhs", x.q[:, :, t], k[:, :, : t + 1]) * self.geometry.scaling
            best = scores.argsort(dim=-1, descending=True, stable=True)[..., : self.options.keep]
            weights = scores.gather(-1, best).softmax(-1)
            values = v[:, :, : t + 1].gather(2, best[..., None].expand(-1, -1, -1, v.shape[3]))
            outs.append(torch.einsum("bhs,bhsd->bhd", weights, values))
        return torch.stack(outs, dim=2)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        return 2 * batch * self.geometry.kv_heads * length * self.geometry.head_dim * dtype.itemsize

    @classmethod
    def limit(cls, length: int) -> Options:
        return cls.Options(keep=length)

    @classmethod
    def conformance_options(cls) -> dict[str, Options]:
        return {"default": cls.Options(), "one": cls.Options(keep=1)}
