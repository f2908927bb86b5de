"""How far a student is from its teacher: dense, both directions, on held-out text."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnopt.device import token_ids
from attnopt.teacher import Head, hidden_states

SUMS = ("kl_forward", "kl_reverse", "jsd", "top1_agreement", "ce", "teacher_ce")


def compare(log_p: Tensor, log_q: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Per token (N,), from log-distributions (N, V) of teacher and student: divergences in nats, agreement, losses.

    The divergences are those of `attnopt.losses.divergence`, in one pass over the vocabulary.
    """
    p, q = log_p.exp(), log_q.exp()
    own_p, own_q = (p * log_p).sum(-1), (q * log_q).sum(-1)
    m = (p + q) / 2
    return {
        "kl_forward": own_p - (p * log_q).sum(-1),
        "kl_reverse": own_q - (q * log_p).sum(-1),
        "jsd": (own_p + own_q) / 2 - torch.xlogy(m, m).sum(-1),
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
    """Every measure of `compare` as an array (blocks, T - 1), in float32 and without autocast.

    Args:
        teacher_hidden: gives the teacher's final hidden states (b, T, C) of a slice of the blocks, and their ids.
    """
    device = head.weight.device
    found: dict[str, list[Tensor]] = {name: [] for name in SUMS}
    for start in progress(range(0, len(blocks), batch)):
        part = slice(start, start + batch)
        ids = token_ids(blocks[part], device)
        ours, theirs = hidden_states(student, ids)[:, :-1], teacher_hidden(part, ids)[:, :-1]
        for row in range(len(ids)):
            log_p = torch.log_softmax(teacher_head(theirs[row].to(teacher_head.weight.dtype)).float(), -1)
            log_q = torch.log_softmax(head(ours[row]).float(), -1)
            for name, values in compare(log_p, log_q, ids[row, 1:]).items():
                found[name].append(values.cpu())
    return {name: torch.stack(values).numpy() for name, values in found.items()}


def mean_and_error(values: np.ndarray, chosen: np.ndarray | None = None) -> tuple[float, float | None]:
    """The mean of values (blocks, n) where `chosen`, all by default, and its standard error over blocks.

    Blocks may hold different numbers of chosen tokens: the error is that of a ratio of sums. None for a single block.
    """
    chosen = np.ones(values.shape, bool) if chosen is None else chosen
    counts, sums = chosen.sum(1), np.where(chosen, values, 0).sum(1, dtype=np.float64)
    blocks, total = len(values), counts.sum()
    mean = float(sums.sum() / total)
    if blocks < 2:
        return mean, None
    return mean, float(math.sqrt(blocks / (blocks - 1) * ((sums - mean * counts) ** 2).sum()) / total)


def summary(tokens: dict[str, np.ndarray], split: dict[str, int]) -> dict[str, Any]:
    """Means over tokens, standard errors over blocks, perplexities per token, word and byte, KL by position.

    Args:
        tokens: what `per_token` returned.
        split: the split's manifest entry, whose words and bytes per token turn token into word and byte perplexity.
    """
    mean = {name: float(values.mean(dtype=np.float64)) for name, values in tokens.items()}
    _, se = mean_and_error(tokens["kl_forward"])
    result: dict[str, Any] = {"tokens": tokens["ce"].size, "blocks": len(tokens["ce"]), **mean, "kl_forward_se": se}
    for unit in ("token", "word", "byte"):
        per_unit = 1.0 if unit == "token" else split["tokens"] / split[f"{unit}s"]
        result[f"ppl_{unit}"] = math.exp(mean["ce"] * per_unit)
        result[f"teacher_ppl_{unit}"] = math.exp(mean["teacher_ce"] * per_unit)
    result["ppl_ratio"] = result["ppl_token"] / result["teacher_ppl_token"]
    result["kl_by_position"] = [round(float(x), 6) for x in tokens["kl_forward"].mean(0, dtype=np.float64)]
    return result
