"""The batches of a run: which blocks every step of every phase learns from, and what the teacher says of them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from torch import Tensor

from attnopt.core.device import token_ids
from attnopt.core.distributed import Alone
from attnopt.targets.dataset import Dataset
from attnopt.targets.targets import Targets
from attnopt.training.params import DistillParams
from attnopt.training.resume import Phase
from attnopt.training.schedule import batch_rows

Part = tuple[Tensor, Targets | None]
"""Blocks (b, T) of token ids, and what the teacher says of them where the objective asks."""


class Batches:
    """This process' share of the train split, step by step; a function of the step, so that a run can resume.

    Args:
        params: batch is over all processes; accumulate is the number of parts of this process' share.
        seed: of the blocks' order.
    """

    def __init__(self, dataset: Dataset, params: DistillParams, seed: int, group: Alone):
        self.dataset, self.params, self.seed, self.group = dataset, params, seed, group

    def read(self, phase: Phase) -> Iterator[list[Part]]:
        """The parts of the batch of each step that the phase has left; on a GPU read one step ahead, while it
        computes."""
        steps = range(phase.step, phase.steps)
        fetch = partial(self._fetch, phase)
        if self.group.device.type != "cuda":
            yield from map(fetch, steps)
            return
        with ThreadPoolExecutor(1) as pool:
            ahead = [pool.submit(fetch, step) for step in steps[:1]]
            for step in steps:
                parts = ahead.pop().result()
                ahead = [pool.submit(fetch, step + 1)] if step + 1 in steps else []
                yield parts

    def _fetch(self, phase: Phase, step: int) -> list[Part]:
        blocks, p = self.dataset.blocks["train"], self.params
        rows_of_step = batch_rows(len(blocks), p.batch, phase.before + step, self.seed)
        share = rows_of_step[self.group.rank :: self.group.size]
        parts: list[Part] = []
        for rows in np.array_split(share, p.accumulate):
            ids = token_ids(blocks[rows], self.group.device)
            wanted = phase.objective.needs_targets
            parts.append((ids, self.dataset.targets("train", rows, ids) if wanted else None))
        return parts
