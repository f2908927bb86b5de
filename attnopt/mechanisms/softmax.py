"""The control: softmax attention over all earlier tokens, as the teacher computes it.

    out_t = sum_{s <= t} p_ts v_s,   p_ts = softmax over s <= t of  scaling q_t . k_s

Source: Vaswani et al. 2017, computed by PyTorch's scaled_dot_product_attention. Nothing is approximated and there is
nothing to fit: what a student with it loses or costs is the swap itself.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from attnopt.mechanisms.base import Inputs, Mechanism, MechanismOptions, State
from attnopt.ops.growing import Tokens
from attnopt.ops.softmax.causal import causal_attention
from attnopt.ops.tensors import own_copy, repeat_heads


class SoftmaxState(NamedTuple):
    """All tokens so far.

    Attributes:
        k: (B, G, S, D) their keys.
        v: (B, G, S, D) their values.
    """

    k: Tokens
    v: Tokens


class Softmax(Mechanism):
    source = "https://arxiv.org/abs/1706.03762"
    paper = "Vaswani et al. 2017"
    growth = "linear"
    dense_weights = True
    cost = "S D"

    class Options(MechanismOptions):
        pass

    def extend(self, x: Inputs, state: SoftmaxState | None = None) -> tuple[Tensor, State]:
        scaling = self.geometry.scaling
        if state is None:  # a copy, as views would keep the model's whole q, k, v alive; attention reads what came
            return causal_attention(x.q, x.k, x.v, scaling), SoftmaxState(Tokens(own_copy(x.k)), Tokens(own_copy(x.v)))
        after = SoftmaxState(state.k.append(x.k), state.v.append(x.v))
        return causal_attention(x.q, after.k.tensor, after.v.tensor, scaling), after

    def absorb(self, x: Inputs, state: SoftmaxState | None = None) -> State:
        if state is None:
            return SoftmaxState(Tokens(own_copy(x.k)), Tokens(own_copy(x.v)))
        return SoftmaxState(state.k.append(x.k), state.v.append(x.v))

    def reference(self, x: Inputs) -> Tensor:
        heads = x.q.shape[1]
        k, v = repeat_heads(x.k, heads), repeat_heads(x.v, heads)
        outs = []
        for t in range(x.q.shape[2]):
            scores = torch.einsum("bhd,bhsd->bhs", x.q[:, :, t], k[:, :, : t + 1]) * self.geometry.scaling
            outs.append(torch.einsum("bhs,bhsd->bhd", scores.softmax(-1), v[:, :, : t + 1]))
        return torch.stack(outs, dim=2)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        return 2 * batch * self.geometry.kv_heads * length * self.geometry.head_dim * dtype.itemsize

    @classmethod
    def limit(cls, length: int) -> Options:
        return cls.Options()
