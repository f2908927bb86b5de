"""Models with a known memory, whose final hidden states are their logits, and texts to try them on."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnopt.corpus.blocks import Documents
from attnopt.teacher.head import Head

VOCAB = 600
HEAD = Head(torch.eye(VOCAB), None, 1.0)


class Planted:
    """Predicts what followed the current token the last time, at most `memory` tokens back; else any token alike."""

    def __init__(self, memory: float = float("inf")):
        self.memory = memory

    def base_model(self, input_ids: Tensor, use_cache: bool) -> Any:
        logits = torch.zeros(*input_ids.shape, VOCAB)
        for b, row in enumerate(input_ids.tolist()):
            last: dict[int, int] = {}
            for t, token in enumerate(row):
                if token in last and t - last[token] <= self.memory:
                    logits[b, t, row[last[token] + 1]] = 30.0
                last[token] = t
        return SimpleNamespace(last_hidden_state=logits)


def documents_of(sizes: list[int], seed: int = 0) -> Documents:
    """Documents of so many tokens each, up to VOCAB: no token comes twice in one."""
    rng = np.random.default_rng(seed)
    return Documents(np.concatenate([rng.permutation(VOCAB)[:size] for size in sizes]), np.cumsum(sizes))
