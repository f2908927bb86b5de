"""Retention: linear attention that forgets at a constant rate of each head, and its hybrid with a softmax window.

    S_t = a S_{t-1} + phi(k_s) v_s^T,   far_t = phi(q_t) S_t / n_t,   a in (0, 1) per key/value head

Token s joins at its own step, or w steps later behind a window of w (`shared/recurrent.py`, which also says what phi is
and how all is fitted). Start: half of the state is left after the head's mean look-back.

Source: Sun et al. 2023 (RetNet), and Lightning attention; rotary positions of the model stay on q and k, as RetNet
has them. Approximated: softmax's kernel on far tokens, by few features and by recency. Unlike RetNet's, the read is
divided by a normaliser that decays along, and features are positive: it then stands beside the window under one
normaliser, and starts close to the teacher, which unnormalised reads with a fitted scale and a fitted mass do not.
"""

from typing import Any

from attnopt.mechanisms.base import Geometry
from attnopt.mechanisms.shared.normalised import Normalised
from attnopt.mechanisms.shared.recurrent import Recurrent


class Retention(Normalised):
    source = "https://arxiv.org/abs/2307.08621"
    paper = "Sun et al. 2023"
    cost = "(w + f) D + F D"

    class Options(Recurrent.Options):
        pass

    def __init__(self, geometry: Geometry, options: Any):
        super().__init__(geometry, options, reads=False)
