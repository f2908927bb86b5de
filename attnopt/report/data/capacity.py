"""How many sequences decode side by side in a given memory, from measured weights, states and peaks."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from attnopt.records.bench import Measurement

MIB, GIB = 2**20, 2**30
ROUNDING = 1e-6


def capacities(measurements: Sequence[Measurement], memory_gib: float) -> list[dict[str, Any]]:
    """A row for each length and subject of the whole model whose decoding was measured.

    Fields: length, subject, memory_gib; weights_mib; state_mib, a sequence's state; sequence_mib, what a sequence
    takes while decoding (where several batches were measured the growth of the peak over them, and what they share
    is paid once; or else the peak over its batch; never below the state); batches, from which; sequences, how many
    fit beside the weights, 0 where these alone do not and None where a sequence takes nothing measurable.
    """
    rows = [m for m in measurements if m.level == "model" and m.phase == "decode" and _complete(m)]
    return [_row(group, memory_gib) for group in _groups(rows)]


def _complete(m: Measurement) -> bool:
    return m.outcome == "ok" and None not in (m.peak_mib, m.state_bytes, m.weight_bytes)


def _groups(rows: Sequence[Measurement]) -> Iterator[list[Measurement]]:
    for key in dict.fromkeys((m.length, m.subject) for m in rows):
        yield sorted((m for m in rows if (m.length, m.subject) == key), key=lambda m: m.batch)


def _row(group: Sequence[Measurement], memory_gib: float) -> dict[str, Any]:
    weights = group[-1].weight_bytes or 0
    state = (group[-1].state_bytes or 0) / group[-1].batch
    batches, peaks = [m.batch for m in group], [(m.peak_mib or 0) * MIB for m in group]
    growth, once = np.polyfit(batches, peaks, 1).tolist() if len(group) > 1 else (peaks[0] / batches[0], 0.0)
    sequence = max(growth, state)
    left = max(memory_gib * GIB - weights - max(once, 0), 0)
    return {
        "length": group[0].length,
        "subject": group[0].subject,
        "memory_gib": memory_gib,
        "weights_mib": weights / MIB,
        "state_mib": state / MIB,
        "sequence_mib": sequence / MIB,
        "batches": batches,
        "sequences": int(left / sequence + ROUNDING) if sequence > 0 else None,
    }
