"""What a step of training is made of: how many there are, which blocks it takes, and how far it goes."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attnopt.corpus.blocks import LONG
from attnopt.student.build import Trainable
from attnopt.training.params import PhaseParams


@dataclass(frozen=True)
class Cut:
    """What a step takes over all processes.

    Attributes:
        split: of the dataset. batch: blocks. length: tokens of a block.
    """

    split: str
    batch: int
    length: int

    @property
    def predicted(self) -> int:
        """Tokens that a step predicts."""
        return self.batch * (self.length - 1)


def long_cut(short: Cut, length: int) -> Cut:
    """Longer blocks for as many tokens as the short ones have; at least one."""
    return Cut(LONG, max(1, short.batch * short.length // length), length)


def total_steps(params: PhaseParams, batch: int, blocks: int) -> int:
    """Optimizer steps of the budget, given the number of training blocks."""
    return params.steps if params.steps is not None else math.ceil((params.epochs or 0) * blocks / batch)


def batch_rows(blocks: int, batch: int, step: int, seed: int) -> np.ndarray:
    """Indices of the blocks of a step: shuffled passes, each a permutation of its own; a function of its arguments."""
    wanted = np.arange(step * batch, (step + 1) * batch)
    orders = {e: np.random.default_rng([seed, e]).permutation(blocks) for e in set((wanted // blocks).tolist())}
    return np.array([orders[i // blocks][i % blocks] for i in wanted.tolist()])


def factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine to zero, as a factor on the peak learning rate."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizer(trainable: Trainable, params: PhaseParams, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, the mechanisms' own parameters at their own rate."""
    groups: list[dict[str, Any]] = [
        {"params": list(trainable.own.values()), "lr": params.mechanism_lr or params.lr},
        {"params": list(trainable.others.values()), "lr": params.lr},
    ]
    groups = [group | {"peak": group["lr"]} for group in groups if group["params"]]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True)
