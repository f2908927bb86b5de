"""How many sequences decode side by side in a given memory, from measured weights, states and peaks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from attnopt.records.bench import Measurement

MIB, GIB = 2**20, 2**30
ROUNDING = 1e-6


@dataclass(frozen=True)
class Capacity:
    """What a memory holds of one subject at one length.

    Attributes:
        length: tokens of context of each sequence.
        subject: "variant" or "softmax".
        memory_gib: the memory asked about.
        weights_mib: the model's parameters and buffers, which are there once.
        state_mib: a sequence's state.
        sequence_mib: what a sequence takes while decoding. Where several batches were measured it is the growth of the
            peak over them, and what they share is paid once; or else the peak over its batch. Never below the state.
        batches: the batch sizes that it was measured at.
        sequences: how many fit beside the weights; 0 where these alone do not, None where a sequence takes nothing
            measurable.
    """

    length: int
    subject: str
    memory_gib: float
    weights_mib: float
    state_mib: float
    sequence_mib: float
    batches: list[int]
    sequences: int | None


def capacities(measurements: Sequence[Measurement], memory_gib: float) -> list[Capacity]:
    """One for each length and subject of the whole model whose decoding was measured."""
    rows = [m for m in measurements if m.level == "model" and m.phase == "decode" and _complete(m)]
    return [_capacity(group, memory_gib) for group in _groups(rows)]


def _complete(m: Measurement) -> bool:
    return m.outcome == "ok" and None not in (m.peak_mib, m.state_bytes, m.weight_bytes)


def _groups(rows: Sequence[Measurement]) -> Iterator[list[Measurement]]:
    """The measurements of each length and subject, by rising batch."""
    for key in dict.fromkeys((m.length, m.subject) for m in rows):
        yield sorted((m for m in rows if (m.length, m.subject) == key), key=lambda m: m.batch)


def _capacity(group: Sequence[Measurement], memory_gib: float) -> Capacity:
    weights = group[-1].weight_bytes or 0
    state = (group[-1].state_bytes or 0) / group[-1].batch
    batches, peaks = [m.batch for m in group], [(m.peak_mib or 0) * MIB for m in group]
    growth, once = np.polyfit(batches, peaks, 1).tolist() if len(group) > 1 else (peaks[0] / batches[0], 0.0)
    sequence = max(growth, state)
    left = max(memory_gib * GIB - weights - max(once, 0), 0)
    return Capacity(
        length=group[0].length,
        subject=group[0].subject,
        memory_gib=memory_gib,
        weights_mib=weights / MIB,
        state_mib=state / MIB,
        sequence_mib=sequence / MIB,
        batches=batches,
        sequences=int(left / sequence + ROUNDING) if sequence > 0 else None,
    )
