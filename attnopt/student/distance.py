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
    device, step = head.weight.device, max(1, LOGITS // len(head.weight))
    found: dict[str, list[Tensor]] = {name: [] for name in SUMS}
    for start in progress(range(0, len(blocks), batch)):
        part = slice(start, min(start + batch, len(blocks)))
        ids = token_ids(blocks[part], device)
        ours, theirs = hidden_states(student, ids)[:, :-1], teacher_hidden(part, ids)[:, :-1]
        for pieces in zip(*(t.flatten(0, 1).split(step) for t in (theirs, ours, ids[:, 1:])), strict=True):
            log_p = torch.log_softmax(teacher_head(pieces[0]).float(), -1)
            log_q = torch.log_softmax(head(pieces[1]).float(), -1)
            for name, values in compare_distributions(log_p, log_q, pieces[2]).items():
                found[name].append(values.cpu())
    return {name: torch.cat(values).view(len(blocks), -1).numpy() for name, values in found.items()}
