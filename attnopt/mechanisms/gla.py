"""Gated linear attention: linear attention that forgets as the text says, and its hybrid with a softmax window.

    S_t = diag(a_t) S_{t-1} + phi(k_s) v_s^T,   far_t = phi(q_t) S_t / n_t,   log a_t = -softplus(b + W h_t)

h_t is the layer's input at t and a_t a factor for each feature, or with `channels: false` one for each key/value head
(Mamba-2's and "simple" GLA). Token s joins at its own step, or w steps later behind a window of w, when the gate is
that of the token then present (`shared/recurrent.py`, which also says what phi is and how b is fitted: half of the
state is left after the head's mean look-back; W is zero at the start). Without hidden states the gates are constant.

Source: Yang et al. 2024; Liger (Lan et al. 2025, arXiv:2503.01496) for softmax features of a converted model's own
queries and keys. Approximated: softmax's kernel on far tokens. The read is normalised, see `retention.py`.
"""

from typing import Any

from attnopt.mechanisms.base import Geometry
from attnopt.mechanisms.shared.normalised import Normalised
from attnopt.mechanisms.shared.recurrent import Recurrent


class GatedLinear(Normalised):
    source = "https://arxiv.org/abs/2312.06635"
    paper = "Yang et al. 2024"
    cost = "(w + f) D + F D"

    class Options(Recurrent.Options):
        channels: bool = True
        """Whether each feature has a gate of its own, of rank 16 together; else there is one per head."""

    def __init__(self, geometry: Geometry, options: Any):
        super().__init__(geometry, options, channels=options.channels)

    @classmethod
    def conformance_options(cls) -> dict[str, Recurrent.Options]:
        return super().conformance_options() | {"one gate": cls.Options(window=8, sinks=3, channels=False)}
