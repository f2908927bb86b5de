"""Everything that is measured of one variant, in order: for every level, length and batch first latency, then memory.

Latency takes a fresh process for every phase, in which the subjects take turns; memory one for every subject and phase.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from attnopt.bench.energy import measure_energy
from attnopt.bench.latency import Times, in_milliseconds, measure_latency
from attnopt.bench.params import BenchParams
from attnopt.bench.peak_memory import Memory, measure_memory
from attnopt.bench.subjects import Operation, Student, Teacher
from attnopt.bench.tables import bench_table
from attnopt.bench.work import Subject
from attnopt.core.errors import UserError
from attnopt.mechanisms import load_mechanism
from attnopt.mechanisms.base import Geometry
from attnopt.records.bench import Level, Measurement, Outcome, Phase
from attnopt.records.distill import MIXED, StudentCard
from attnopt.records.teacher import TeacherManifest
from attnopt.teacher.params import TeacherParams

GPT2 = Geometry(heads=12, kv_heads=12, head_dim=64, hidden=768, scaling=64**-0.5)
ALONE = BenchParams(longest_train=1024)
"""Settings of a mechanism that is measured alone, without a project."""


@dataclass(frozen=True)
class Plan:
    """One level: its subjects, which are measured side by side, and the context lengths.

        plan = Plan("operation", [Operation("window", GPT2), Operation("softmax", GPT2, name="softmax")], [1024, 4096])
        measurements = run_bench([plan], BenchParams())

    Attributes:
        level: "model" for whole models, "operation" for one layer's attention alone.
        lengths: in tokens.
    """

    level: Level
    subjects: Sequence[Subject]
    lengths: Sequence[int]


class Step(NamedTuple):
    """One length of a plan; `params` hold the batch and the phases that are measured at it."""

    plan: Plan
    params: BenchParams
    length: int


class Cell(NamedTuple):
    """What one measurement is of."""

    level: Level
    phase: Phase
    length: int
    batch: int
    subject: str


def plans_of(
    student: Path, card: StudentCard, manifest: TeacherManifest, teacher: TeacherParams, params: BenchParams
) -> list[Plan]:
    """What is measured of a variant: its student beside the teacher, and its mechanism alone beside softmax.

    A mixed student has no one mechanism to be measured alone.

    Args:
        student: folder of the distilled student. card: what stands in its student.json.
        manifest: of the teacher, for the geometry of its attention.
        teacher: the section that the teacher is loaded by.
    """
    shape = manifest.config
    geometry = Geometry(
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        hidden=shape.hidden,
        scaling=shape.head_dim**-0.5,
    )
    model = Plan("model", [Student(student), Teacher(teacher)], params.lengths)
    if card.kind == MIXED:
        return [model]
    own = Operation(card.kind, geometry, card.options)
    alone = Plan("operation", [own, Operation("softmax", geometry, name="softmax")], params.operation_lengths)
    return [model, alone]


def run_bench(
    plans: Sequence[Plan], params: BenchParams, progress: Callable[[list[Step]], Iterable[Step]] = iter
) -> list[Measurement]:
    """Measure all phases of all plans' subjects, at all their lengths and the params' batches.

    It may be called any number of times in one process: all calls share the server that fresh processes fork from.

    Args:
        progress: wraps the list of steps, as a progress bar does.
    Raises:
        UserError: the device, or the counter of energy, is not there.
        RuntimeError: a subject failed; RunError: its process crashed. Out of memory and over time are outcomes.
    """
    return [row for step in progress(steps(plans, params)) for row in _measure(step)]


def steps(plans: Sequence[Plan], params: BenchParams) -> list[Step]:
    """All steps in order: further batches, of the whole model alone, come after everything at the first one."""
    every = [Step(plan, params.at(n, params.batch), n) for plan in plans for n in plan.lengths]
    models = [plan for plan in plans if plan.level == "model"]
    every += [Step(plan, params.at(n, batch), n) for batch in params.batches for plan in models for n in plan.lengths]
    return [step for step in every if step.params.phases]


def _measure(step: Step) -> Iterator[Measurement]:
    plan, params, length = step
    times = measure_latency(plan.subjects, length, params)
    peaks = measure_memory(plan.subjects, length, params)
    for phase, subject in ((p, s) for p in params.phases for s in plan.subjects):
        cell = Cell(plan.level, phase, length, params.batch, subject.name)
        found = merge(cell, times[phase, subject.name], peaks[phase, subject.name])
        if params.energy and found.outcome == "ok":
            found = found.model_copy(update={"joules": measure_energy(subject, phase, length, params)})
        yield found


def merge(cell: Cell, times: Times, memory: Memory) -> Measurement:
    """One measurement of both passes. What either found is kept; where one ended early, that is the outcome."""
    early: list[Outcome] = [found.outcome for found in (times, memory) if found.outcome != "ok"]
    return Measurement(
        **cell._asdict(),
        **in_milliseconds(cell.phase, times.samples)._asdict(),
        noisy=times.noisy,
        synthetic_positions=times.synthetic_positions,
        peak_mib=memory.peak_mib,
        peak_sampled_mib=memory.peak_sampled_mib,
        peak_allocated_mib=memory.peak_allocated_mib,
        peak_reserved_mib=memory.peak_reserved_mib,
        memory_agrees=memory.memory_agrees,
        weight_bytes=memory.weight_bytes,
        state_bytes=memory.state_bytes,
        state_bytes_declared=memory.state_bytes_declared,
        outcome=early[0] if early else "ok",
    )


def bench_operation(kind: str, lengths: Sequence[int], params: BenchParams | None = None) -> str:
    """A Markdown table of one mechanism with its default options beside SDPA, at GPT-2's geometry (12 heads of 64).

    Args:
        lengths: in tokens.
    Raises:
        UserError: there is no such mechanism, or a length is not positive.
    """
    if min(lengths) < 1:
        raise UserError(f"--length: {min(lengths)} is no number of tokens; 1 or more is")
    try:
        load_mechanism(kind)
    except ValueError as error:
        raise UserError(str(error)) from None
    subjects = [Operation(kind, GPT2), Operation("softmax", GPT2, name="softmax")]
    return bench_table(run_bench([Plan("operation", subjects, lengths)], params or ALONE), kind)
