"""Some tokens of given texts, as teacher and student predict them; what the teacher says is computed once."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnopt.ops.divergence import forward_kl
from attnopt.student.distance import LOGITS, put_together
from attnopt.teacher.head import Head, hidden_states

Measures = dict[str, np.ndarray]


class Forced:
    """The tokens `asked` of texts (n, T), each predicted from all that stands before it.

        forced = Forced(teacher, head_of(teacher), ids, asked, rows=8)
        forced.measure(student, head_of(student))["kl_forward"]  # (N,), in the order of ids[asked]

    Args:
        asked: (n, T) bool; the first token of a text cannot be.
        rows: texts per forward pass.
    """

    def __init__(self, teacher: Any, head: Head, ids: Tensor, asked: Tensor, rows: int):
        self.head, device = head, head.weight.device
        self.ids, self.asked = ids.to(device).split(rows), asked.to(device).split(rows)
        self.tokens = [part[chosen] for part, chosen in self._parts()]
        self.hidden = [self._hidden(teacher, *part) for part in self._parts()]

    def measure(self, student: Any, head: Head, progress: Any = iter) -> Measures:
        """Of each token asked for, (N,): `kl_forward` to the teacher, `ce` and `teacher_ce` in nats, `top1_agreement`
        of the two, and whether the arg-max is the token itself: `right`, `teacher_right`."""
        return put_together(self._compared(student, head, progress), sum(map(len, self.tokens)))

    def _compared(self, student: Any, head: Head, progress: Any) -> Iterator[dict[str, Tensor]]:
        step = max(1, LOGITS // len(head.weight))
        for part, theirs, tokens in progress([*zip(self._parts(), self.hidden, self.tokens, strict=True)]):
            ours = self._hidden(student, *part)
            for pieces in zip(ours.split(step), theirs.split(step), tokens.split(step), strict=True):
                yield _compared(head, self.head, *pieces)

    def _parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.ids, self.asked, strict=True)

    @torch.no_grad()
    def _hidden(self, model: Any, ids: Tensor, asked: Tensor) -> Tensor:
        """(N, C) the final hidden states that predict the tokens asked for."""
        return hidden_states(model, ids)[:, :-1][asked[:, 1:]]


@torch.no_grad()
def _compared(head: Head, teacher_head: Head, ours: Tensor, theirs: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    log_q, log_p = (torch.log_softmax(h(x).float(), -1) for h, x in ((head, ours), (teacher_head, theirs)))
    best, teacher_best = log_q.argmax(-1), log_p.argmax(-1)
    return {
        "kl_forward": forward_kl(log_p, log_q),
        "ce": -log_q.gather(-1, tokens[:, None])[:, 0],
        "teacher_ce": -log_p.gather(-1, tokens[:, None])[:, 0],
        "top1_agreement": (best == teacher_best).float(),
        "right": best == tokens,
        "teacher_right": teacher_best == tokens,
    }


def rows_per_pass(batch: int, block: int, length: int) -> int:
    """Texts of `length` tokens that make about as many tokens as a batch of blocks, one at least."""
    return max(1, batch * block // length)
