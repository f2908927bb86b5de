"""A sliding window with sinks: softmax over the last w tokens and the first f.

    out_t = sum_s p_ts v_s,   p_ts = softmax of scaling q_t . k_s over  { s : t - w < s <= t  or  s < f }

Source: Xiao et al. 2024 (StreamingLLM), who found that pretrained models put much weight on the first tokens, the
sinks, and lose their fluency when these leave a window. Approximated: tokens between the two have no weight. There is
nothing to fit: the scores are the teacher's own.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, MechanismOptions, Size, State
from attnopt.ops.softmax.dense import ages, dense_attention, only
from attnopt.ops.softmax.window import window_attention
from attnopt.ops.tensors import repeat_heads
from attnopt.ops.window_state import WindowState, append_tokens


class Window(Mechanism):
    source = "https://arxiv.org/abs/2309.17453"
    paper = "Xiao et al. 2024"
    growth = "window"
    cost = "(w + f) D"

    class Options(MechanismOptions):
        window: Annotated[int, Field(ge=1)] = 16
        """w: a token attends to itself and to the w - 1 tokens before it."""
        sinks: Annotated[int, Field(ge=0)] = 4
        """f: and to the first f tokens of the sequence; 0 for none."""

    def extend(self, x: Inputs, state: WindowState | None = None) -> tuple[Tensor, State]:
        window, sinks = self.options.window, self.options.sinks
        kept = append_tokens(state, x.k, x.v, sinks)
        out, _ = window_attention(x.q, kept, window, self.geometry.scaling)
        return out.to(x.q.dtype), kept.cut(window - 1)

    def absorb(self, x: Inputs, state: WindowState | None = None) -> State:
        return append_tokens(state, x.k, x.v, self.options.sinks).cut(self.options.window - 1)

    def parallel(self, x: Inputs) -> Tensor:
        age = ages(x.q.shape[2], x.q)
        first = torch.arange(len(age), device=age.device) < self.options.sinks
        seen = (age >= 0) & ((age < self.options.window) | first)
        return dense_attention(x.q, x.k, x.v, only(seen, x.q), self.geometry.scaling)

    def reference(self, x: Inputs) -> Tensor:
        heads = x.q.shape[1]
        k, v = repeat_heads(x.k, heads), repeat_heads(x.v, heads)
        outs = []
        for t in range(x.q.shape[2]):
            seen = [s for s in range(t + 1) if s > t - self.options.window or s < self.options.sinks]
            scores = torch.einsum("bhd,bhsd->bhs", x.q[:, :, t], k[:, :, seen]) * self.geometry.scaling
            outs.append(torch.einsum("bhs,bhsd->bhd", scores.softmax(-1), v[:, :, seen]))
        return torch.stack(outs, dim=2)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        tokens = min(length, self.options.window - 1 + self.options.sinks)
        return 2 * batch * self.geometry.kv_heads * tokens * self.geometry.head_dim * dtype.itemsize

    @classmethod
    def sizes(cls, geometry: Geometry, options: Options) -> tuple[Size, ...]:
        return (Size(("window",)),)

    @classmethod
    def limit(cls, length: int) -> Options:
        return cls.Options(window=length)

    @classmethod
    def conformance_options(cls) -> dict[str, Options]:
        return {"default": cls.Options(), "one token": cls.Options(window=1, sinks=0)}
