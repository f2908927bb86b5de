"""How far a student is from its teacher, token by token: dense, both directions, on held-out text."""

from collections.abc import Callable
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


def in_pieces(compare: Callable[..., dict[str, Tensor]], vocabulary: int, *tensors: Tensor) -> dict[str, Tensor]:
    """`compare` of pieces of tensors (N, ...) whose logits would be too many at once: its measures (N,), put together.

    They are written where they stay. Kept one by one, each small tensor would lie among the logits of the next piece
    and split the room they leave, so that a process grows by all logits that it ever had.
    """
    found: dict[str, Tensor] = {}
    count, step = len(tensors[0]), max(1, LOGITS // vocabulary)
    for start in range(0, max(count, 1), step):
        for name, values in compare(*(t[start : start + step] for t in tensors)).items():
            if name not in found:
                found[name] = values.new_empty(count)
            found[name][start : start + step] = values
    return found


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
    found: list[dict[str, Tensor]] = []

    def compared(theirs: Tensor, ours: Tensor, targets: Tensor) -> dict[str, Tensor]:
        log_p, log_q = (torch.log_softmax(h(x).float(), -1) for h, x in ((teacher_head, theirs), (head, ours)))
        return compare_distributions(log_p, log_q, targets)

    for start in progress(range(0, len(blocks), batch)):
        part = slice(start, min(start + batch, len(blocks)))
        ids = token_ids(blocks[part], head.weight.device)
        ours, theirs = hidden_states(student, ids)[:, :-1], teacher_hidden(part, ids)[:, :-1]
        flat = (t.flatten(0, 1) for t in (theirs, ours, ids[:, 1:]))
        found.append(in_pieces(compared, len(head.weight), *flat))
    return {name: torch.cat([part[name].cpu() for part in found]).view(len(blocks), -1).numpy() for name in SUMS}
