"""How far a student is from its teacher, token by token: dense, both directions, on held-out text."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnopt.core.device import token_ids
from attnopt.ops.divergence import all_divergences
from attnopt.teacher.head import Head, hidden_states

LOGITS = 2**22
"""Of one model at a time: positions go through the head in pieces, so that long blocks need no more memory."""
SUMS = ("kl_forward", "kl_reverse", "jsd", "top1_agreement", "ce", "teacher_ce")


def compare_distributions(log_p: Tensor, log_q: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Every measure of `SUMS` for each of N tokens.

    Args:
        log_p: (N, V) log-probabilities of the teacher.
        log_q: (N, V) log-probabilities of the student.
        targets: (N,) ids of the tokens that follow in the text.

    Returns: (N,) each: the divergences in nats, whether both give the same token the highest probability, and the
    cross-entropies of student and teacher with the text in nats.
    """
    return {
        **all_divergences(log_p, log_q),
        "top1_agreement": (log_p.argmax(-1) == log_q.argmax(-1)).float(),
        "ce": -log_q.gather(-1, targets[:, None])[:, 0],
        "teacher_ce": -log_p.gather(-1, targets[:, None])[:, 0],
    }


def put_together(pieces: Iterable[dict[str, Tensor]], count: int) -> dict[str, np.ndarray]:
    """The measures of N = `count` tokens, (N,) each, from those of some at a time.

    They are written where they stay. Kept one by one, small tensors would lie among the logits that come and go and
    split the room which these leave: a process would grow by all logits that it ever had.
    """
    found: dict[str, Tensor] = {}
    start = 0
    for piece in pieces:
        for name, values in piece.items():
            if name not in found:
                found[name] = torch.empty(count, dtype=values.dtype)
            found[name][start : (stop := start + len(values))] = values
        start = stop
    return {name: values.numpy() for name, values in found.items()}


@torch.no_grad()
def per_token(
    student: Any,
    head: Head,
    teacher_hidden: Callable[[slice, Tensor], Tensor],
    teacher_head: Head,
    blocks: np.ndarray,
    batch: int = 16,
    progress: Any = iter,
) -> dict[str, np.ndarray]:
    """Every measure of `compare_distributions` as an array (blocks, T - 1), in float32 and without autocast.

    Args:
        teacher_hidden: gives the teacher's final hidden states (b, T, C) of a slice of the blocks, and their ids.
    """
    step = max(1, LOGITS // len(head.weight))

    def pieces() -> Iterator[dict[str, Tensor]]:
        for start in progress(range(0, len(blocks), batch)):
            part = slice(start, min(start + batch, len(blocks)))
            ids = token_ids(blocks[part], head.weight.device)
            ours, theirs = hidden_states(student, ids)[:, :-1], teacher_hidden(part, ids)[:, :-1]
            for piece in zip(*(t.flatten(0, 1).split(step) for t in (theirs, ours, ids[:, 1:])), strict=True):
                yield _compared(teacher_head, head, *piece)

    found = put_together(pieces(), len(blocks) * (blocks.shape[1] - 1))
    return {name: found[name].reshape(len(blocks), -1) for name in SUMS}


def _compared(teacher_head: Head, head: Head, theirs: Tensor, ours: Tensor, targets: Tensor) -> dict[str, Tensor]:
    log_p, log_q = (torch.log_softmax(h(x).float(), -1) for h, x in ((teacher_head, theirs), (head, ours)))
    return compare_distributions(log_p, log_q, targets)
