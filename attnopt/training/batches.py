"""The batches of a run: which blocks every step of every phase learns from, and what the teacher says of them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from attnopt.core.device import token_ids
from attnopt.core.distributed import Alone
from attnopt.core.errors import UserError
from attnopt.corpus.blocks import LONG
from attnopt.targets.dataset import Dataset
from attnopt.training.params import DistillParams
from attnopt.training.phases.base import Part
from attnopt.training.resume import Phase
from attnopt.training.schedule import Cut, batch_rows, long_cut


class Batches:
    """This process' share of the train split, step by step; a function of the step, so that a run can resume.

    Args:
        params: batch is over all processes; accumulate is the number of parts of this process' share.
        seed: of the blocks' order.
    Raises: UserError where the batch does not divide into the processes and parts.
    """

    def __init__(self, dataset: Dataset, params: DistillParams, seed: int, group: Alone):
        self.dataset, self.params, self.seed, self.group = dataset, params, seed, group
        if params.batch % (group.size * params.accumulate):
            parts = f"{group.size} processes x {params.accumulate} parts"
            raise UserError(f"distill.batch: {params.batch} blocks do not divide into {parts}")
        self.short = Cut("train", params.batch, dataset.blocks["train"].shape[1])

    @property
    def long(self) -> Cut:
        """What the last share of the steps takes.

        Raises: UserError where data/corpus has no longer blocks, or they do not divide into processes and parts.
        """
        if LONG not in self.dataset.blocks:
            raise UserError("distill.long_share needs corpus.long_block: set it and run `dvc repro cache-logits`")
        cut, p = long_cut(self.short, self.dataset.blocks[LONG].shape[1]), self.params
        if cut.batch % (self.group.size * p.accumulate):
            parts = f"{self.group.size} processes x {p.accumulate} parts"
            blocks = f"{p.batch} blocks of {self.short.length} are {cut.batch} of {cut.length}"
            raise UserError(f"distill.long_share: {blocks}, which do not divide into {parts}")
        return cut

    def cut(self, phase: Phase, step: int) -> Cut:
        """What a step of a phase takes."""
        return self.long if step >= phase.steps - phase.long else self.short

    def predicted(self, phase: Phase) -> int:
        """Tokens that the phase's steps so far have predicted."""
        short, long = phase.steps_by_length
        return short * self.short.predicted + (long * self.long.predicted if long else 0)

    def steps_by_length(self, phase: Phase) -> list[tuple[int, int]]:
        """Tokens of a block, and how many of the phase's steps so far took such blocks."""
        short, long = phase.steps_by_length
        found = [(self.short.length, short)] if short else []
        return found + ([(self.long.length, long)] if long else [])

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
        cut = self.cut(phase, step)
        rows_of_step = batch_rows(len(self.dataset.blocks[cut.split]), cut.batch, phase.before + step, self.seed)
        share = rows_of_step[self.group.rank :: self.group.size]
        return [self._part(phase, cut.split, rows) for rows in np.array_split(share, self.params.accumulate)]

    def _part(self, phase: Phase, split: str, rows: np.ndarray) -> Part:
        ids = token_ids(self.dataset.blocks[split][rows], self.group.device)
        return ids, phase.objective.targets(split, rows, ids), self.dataset.positions(split, rows, ids.device)
