"""The memory pass: for every subject and phase a fresh process, whose peak three rulers measure.

They are the kernel's high-water mark, the resident set sampled from outside the process, and torch's own allocator.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from attnopt.bench.fresh_process import FreshProcess, Stopped, in_fresh_process
from attnopt.bench.params import BenchParams
from attnopt.bench.rulers import Watcher, allocated, high_water, resident_of, resting, return_freed_memory
from attnopt.bench.work import Runner, Setting, Subject, Work, settle_process
from attnopt.records.bench import Outcome, Phase

MIB = 2**20
TOLERANCE, SLACK_MIB = 0.1, 2.0
"""Two rulers agree where they differ by no more than a tenth, or by what threads and libraries keep for themselves."""


@dataclass(frozen=True)
class Memory:
    """What the rulers say of one subject in one phase at one length; fields as in a record's Measurement."""

    outcome: Outcome
    peak_mib: float | None = None
    peak_sampled_mib: float | None = None
    peak_allocated_mib: float | None = None
    peak_reserved_mib: float | None = None
    memory_agrees: bool | None = None
    weight_bytes: int | None = None
    state_bytes: int | None = None
    state_bytes_declared: int | None = None


class Begun(NamedTuple):
    """A process says that its measured block begins now.

    Attributes:
        resting: bytes that it held before.
    """

    pid: int
    resting: int


def measure_memory(subjects: Sequence[Subject], length: int, params: BenchParams) -> dict[tuple[Phase, str], Memory]:
    """Memory of all subjects in all phases of `params`, a process for each; by phase and subject's name.

    Args:
        length: of the context, in tokens.
    """
    every = [(subject, phase) for subject in subjects for phase in params.phases]
    return {(phase, subject.name): measure_peak(subject, phase, length, params) for subject, phase in every}


def measure_peak(subject: Subject, phase: Phase, length: int, params: BenchParams) -> Memory:
    """Peak memory and state of one phase of one subject, in a fresh process.

    What ends the process early is the outcome. An early end of the allocator's count, which repeats the run once the
    peak is known, loses that count alone.
    """
    found: Memory | None = None
    within = 2 * params.max_seconds
    try:
        with in_fresh_process(_memory, subject, phase, length, params) as process:
            first: Begun | Memory = process.receive(within)
            if isinstance(first, Memory):
                return first
            found = _watched(first, process, within)
            return compared(found, process.receive(within))
    except Stopped as stop:
        return found or Memory(stop.outcome)


def _watched(begun: Begun, process: FreshProcess, within: float) -> Memory:
    """The report of the block that has begun, with what a look from outside saw until it came."""
    with Watcher(partial(resident_of, begun.pid)) as watcher:
        found: Memory = process.receive(within)
    return replace(found, peak_sampled_mib=max(0, watcher.bytes - begun.resting) / MIB)


def compared(found: Memory, allocated_mib: float) -> Memory:
    """With the peak by torch's allocator, in MiB, and whether it agrees with the one that was found."""
    assert found.peak_mib is not None
    return replace(found, peak_allocated_mib=allocated_mib, memory_agrees=agree(found.peak_mib, allocated_mib))


def agree(a: float, b: float) -> bool:
    """Whether two figures of one peak, in MiB, tell the same."""
    return abs(a - b) <= max(TOLERANCE * max(a, b), SLACK_MIB)


def _memory(subject: Subject, phase: Phase, length: int, params: BenchParams) -> Iterator[Begun | Memory | float]:
    """Runs in the fresh process. Yields Begun, the peak and the allocator's own peak in MiB; on a GPU the peak alone,
    which is its allocator's."""
    setting = settle_process(params)
    return_freed_memory()
    runner = subject.load(setting)
    _warm_up(runner.work(phase, max(1, length // 2)))
    work = runner.work(phase, length)
    yield from _peak(work, runner, phase, length, setting)
    if not setting.cuda:
        yield _allocated(work) / MIB


def _peak(work: Work, runner: Runner, phase: Phase, length: int, setting: Setting) -> Iterator[Begun | Memory]:
    before = resting(setting.cuda)
    context = work.context()
    state = runner.state_bytes(context) if phase == "decode" else None
    if not setting.cuda:
        yield Begun(os.getpid(), before)
    with high_water(setting.cuda) as peak:
        left = work.run(context)
    if phase == "prefill":
        state = runner.state_bytes(left)
    found = Memory(
        outcome="ok",
        peak_mib=(peak.bytes - before) / MIB,
        weight_bytes=runner.weight_bytes(),
        state_bytes=state,
        state_bytes_declared=None if phase == "train" else runner.declared_bytes(length),
    )
    if peak.reserved is not None:
        found = compared(replace(found, peak_reserved_mib=peak.reserved / MIB), (peak.bytes - before) / MIB)
    yield found


def _allocated(work: Work) -> int:
    """The same peak by the allocator's count, in bytes: what the context holds, and the most on top of it."""
    context, _, held = allocated(work.context)
    _, peak, _ = allocated(partial(work.run, context))
    return held + peak


def _warm_up(work: Work) -> None:
    """Half the length: libraries' buffers and threads exist afterwards, tables of the full length do not."""
    work.run(work.context())
