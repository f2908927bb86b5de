"""The memory pass: for every subject and phase a fresh process, whose peak three rulers measure."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from attnopt.bench.fresh_process import Stopped, in_fresh_process
from attnopt.bench.params import BenchParams, Phase
from attnopt.bench.rulers import Watcher, allocated, high_water, resident_of, resting, return_freed_memory
from attnopt.bench.subjects import Runner, Setting, Subject, Work, settle_process

MIB = 2**20
TOLERANCE, SLACK_MIB = 0.1, 2.0
"""Two rulers agree where they differ by no more than a tenth, or by what threads and libraries keep for themselves."""
Fields = dict[str, Any]


class Begun(NamedTuple):
    """A process says that its measured block begins now.

    Attributes:
        resting: bytes that it held before.
    """

    pid: int
    resting: int


def measure_memory(subjects: Sequence[Subject], length: int, params: BenchParams) -> dict[tuple[Phase, str], Fields]:
    """Memory fields of all subjects in all phases."""
    return {(phase, s.name): fields for s in subjects for phase, fields in memory(s, length, params).items()}


def memory(subject: Subject, length: int, params: BenchParams) -> dict[Phase, Fields]:
    """Peak and state of every phase of one subject; what ends a process early is that phase's outcome."""
    return {phase: _phase(subject, phase, length, params) for phase in params.phases}


def _phase(subject: Subject, phase: Phase, length: int, params: BenchParams) -> Fields:
    fields: Fields = {}
    items = in_fresh_process(_memory, subject, phase, length, params, patience=lambda _: 2 * params.max_seconds)
    try:
        for item in items:
            fields |= _watched(item, items) if isinstance(item, Begun) else item
    except Stopped as stop:
        return {"outcome": stop.outcome} | fields
    if "peak_allocated_mib" in fields:
        fields["memory_agrees"] = agree(fields["peak_mib"], fields["peak_allocated_mib"])
    return fields


def _watched(begun: Begun, items: Iterator[Fields]) -> Fields:
    """The next item, with what a look from outside saw until it came."""
    with Watcher(partial(resident_of, begun.pid)) as watcher:
        fields = next(items)
    return fields | {"peak_sampled_mib": max(0, watcher.bytes - begun.resting) / MIB}


def agree(a: float, b: float) -> bool:
    """Whether two figures of one peak, in MiB, tell the same."""
    return abs(a - b) <= max(TOLERANCE * max(a, b), SLACK_MIB)


def _memory(subject: Subject, phase: Phase, length: int, params: BenchParams) -> Iterator[Begun | Fields]:
    setting = settle_process(params)
    return_freed_memory()
    runner = subject.load(setting)
    _warm_up(runner.work(phase, max(1, length // 2)))
    work = runner.work(phase, length)
    yield from _peak(work, runner, phase, length, setting)
    if not setting.cuda:
        yield {"peak_allocated_mib": _allocated(work) / MIB}


def _peak(work: Work, runner: Runner, phase: Phase, length: int, setting: Setting) -> Iterator[Begun | Fields]:
    before = resting(setting.cuda)
    context = work.context()
    state = runner.state_bytes(context) if phase == "decode" else None
    if not setting.cuda:
        yield Begun(os.getpid(), before)
    with high_water(setting.cuda) as peak:
        left = work.run(context)
    if phase == "prefill":
        state = runner.state_bytes(left)
    fields = {
        "peak_mib": (peak.bytes - before) / MIB,
        "state_bytes": state,
        "state_bytes_declared": None if phase == "train" else runner.declared_bytes(length),
        "weight_bytes": runner.weight_bytes(),
        "outcome": "ok",
    }
    if peak.reserved is not None:
        fields |= {"peak_allocated_mib": fields["peak_mib"], "peak_reserved_mib": peak.reserved / MIB}
    yield fields


def _allocated(work: Work) -> int:
    """The same peak by the allocator's count: what the context holds, and the most on top of it."""
    context, _, held = allocated(work.context)
    _, peak, _ = allocated(partial(work.run, context))
    return held + peak


def _warm_up(work: Work) -> None:
    """Half the length: libraries' buffers and threads exist afterwards, tables of the full length do not."""
    work.run(work.context())
