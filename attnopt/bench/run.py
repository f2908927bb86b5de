"""Run the bench: a fresh process for every level and length for latency, and for every subject there for memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from attnopt import mechanisms
from attnopt.bench import BenchParams, Phase
from attnopt.bench.clock import Limits, interleave, quartiles, seconds
from attnopt.bench.isolate import Stopped, fresh
from attnopt.bench.memory import high_water, resting, return_freed_memory
from attnopt.bench.record import Level, Measurement, summary, table, unit_of
from attnopt.bench.subjects import Operation, Runner, Setting, Subject, Work, settle
from attnopt.errors import UserError
from attnopt.mechanisms.base import Geometry

MIB = 2**20
GPT2 = Geometry(heads=12, kv_heads=12, head_dim=64, hidden=768, scaling=64**-0.5)
Fields = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """One level: its subjects, measured side by side, and the lengths."""

    level: Level
    subjects: Sequence[Subject]
    lengths: Sequence[int]


def measure(
    plans: Sequence[Plan], params: BenchParams, progress: Callable[[list[Any]], Iterable[Any]] = iter
) -> list[Measurement]:
    """All phases of all plans' subjects and lengths. Raises UserError, and RuntimeError where a subject fails."""
    found = []
    steps = [(plan, length) for plan in plans for length in plan.lengths]
    for plan, length in progress(steps):
        times = latency(plan.subjects, length, params)
        peaks = {subject.name: memory(subject, length, params) for subject in plan.subjects}
        for phase in params.phases:
            for subject in plan.subjects:
                fields = _merge(times[phase, subject.name], peaks[subject.name][phase])
                found.append(_measurement(plan.level, phase, length, params.batch, subject.name, fields))
    return found


def bench_operation(kind: str, lengths: Sequence[int], params: BenchParams | None = None) -> str:
    """A table of one mechanism with its default options beside SDPA, at GPT-2's geometry (12 heads of 64).

    Raises: UserError where there is no such mechanism or a length is not positive.
    """
    if min(lengths) < 1:
        raise UserError(f"--length: {min(lengths)} is no number of tokens; 1 or more is")
    try:
        mechanisms.load(kind)
    except ValueError as error:
        raise UserError(str(error)) from None
    subjects = [Operation(kind, GPT2), Operation("softmax", GPT2, name="softmax")]
    return table(measure([Plan("operation", subjects, lengths)], params or BenchParams()), kind)


def _measurement(level: Level, phase: Phase, length: int, batch: int, subject: str, fields: Fields) -> Measurement:
    return Measurement(
        level=level, phase=phase, length=length, batch=batch, subject=subject, unit=unit_of(phase), **fields
    )


def _merge(time: Fields, memory: Fields) -> Fields:
    """One measurement's fields; where either pass ended early, that is its outcome."""
    return memory | time | {"outcome": next((f["outcome"] for f in (time, memory) if f["outcome"] != "ok"), "ok")}


def latency(subjects: Sequence[Subject], length: int, params: BenchParams) -> dict[tuple[Phase, str], Fields]:
    """Times of all phases, interleaved over the subjects; one that stops its process is left out, the others go on."""
    found: dict[tuple[Phase, str], Fields] = {}
    waiting = list(subjects)
    while waiting:
        phases = [p for p in params.phases if any((p, s.name) not in found for s in waiting)]
        doing: str | None = None
        alone, together = 2 * params.max_seconds, 2 * (len(waiting) + 1) * params.max_seconds

        def patience(item: Any, alone: float = alone, together: float = together) -> float:
            return alone if isinstance(item, str) else together

        try:
            for item in fresh(_latency, waiting, phases, length, params, patience=patience):
                if isinstance(item, dict):
                    found |= item
                else:
                    doing = item
            break
        except Stopped as stop:
            guilty = [s for s in waiting if doing in (None, s.name)]
            missing = ((p, s.name) for s in guilty for p in phases)
            found = {key: {"outcome": stop.outcome} for key in missing} | found
            waiting = [s for s in waiting if s not in guilty]
    return found


def _latency(
    subjects: Sequence[Subject], phases: Sequence[Phase], length: int, params: BenchParams
) -> Iterator[str | dict[tuple[Phase, str], Fields] | None]:
    """Yields the name of the subject at work (None: all in turn) and, at the end of a phase, its results."""
    setting = settle(params)
    runners: dict[str, Runner] = {}
    for subject in subjects:
        yield subject.name
        runners[subject.name] = subject.load(setting)
    for phase in phases:
        samplers: dict[str, Callable[[], float]] = {}
        for name, runner in runners.items():
            yield name
            samplers[name] = sampler(runner.work(phase, length), setting)
            samplers[name]()
        yield None
        results = _timed(samplers, params)
        yield {
            (phase, name): results[name] | {"synthetic_positions": runner.is_synthetic(phase, length)}
            for name, runner in runners.items()
        }


def sampler(work: Work, setting: Setting) -> Callable[[], float]:
    """Takes one sample of `work` in seconds, per token where it decodes; what a run needs is made outside the clock."""
    context = work.context()

    def sample() -> float:
        return seconds(work.run, work.copy(context), setting.cuda) / work.tokens

    return sample


def _timed(samplers: dict[str, Callable[[], float]], params: BenchParams) -> dict[str, Fields]:
    """Interleaved samples in milliseconds; taken again, once, where they are noisy, and the calmer of both kept."""
    limits = Limits(params.min_iterations, params.min_seconds, params.max_seconds)
    takes = [interleave(samplers, limits)]
    if worst_spread(takes[0]) > params.max_spread:
        takes.append(interleave(samplers, limits, seed=1))
    best = min(takes, key=worst_spread)
    return {name: _fields(samples, params) for name, samples in best.items()}


def worst_spread(samples: dict[str, list[float]]) -> float:
    return max(quartiles(s).spread for s in samples.values())


def _fields(samples: Sequence[float], params: BenchParams) -> Fields:
    done = len(samples) >= params.min_iterations
    return summary([s * 1e3 for s in samples]) | {
        "outcome": "ok" if done else "over-time",
        "noisy": quartiles(samples).spread > params.max_spread,
    }


def memory(subject: Subject, length: int, params: BenchParams) -> dict[Phase, Fields]:
    """Peak and state of all phases of one subject, in one fresh process."""
    found: dict[Phase, Fields] = {}
    try:
        for phase, fields in fresh(_memory, subject, length, params, patience=lambda _: 2 * params.max_seconds):
            found[phase] = fields
    except Stopped as stop:
        found = {p: {"outcome": stop.outcome} for p in params.phases} | found
    return found


def _memory(subject: Subject, length: int, params: BenchParams) -> Iterator[tuple[Phase, Fields]]:
    setting = settle(params)
    return_freed_memory()
    runner = subject.load(setting)
    for phase in params.phases:
        _warm_up(runner.work(phase, max(1, length // 2)))
        yield phase, _peak(runner, phase, length, setting)


def _peak(runner: Runner, phase: Phase, length: int, setting: Setting) -> Fields:
    work = runner.work(phase, length)
    before = resting(setting.cuda)
    context = work.context()
    state = runner.state_bytes(context) if phase == "decode" else None
    with high_water(setting.cuda) as peak:
        left = work.run(context)
    if phase == "prefill":
        state = runner.state_bytes(left)
    declared = None if phase == "train" else runner.declared_bytes(length)
    return {
        "peak_mib": (peak.bytes - before) / MIB,
        "state_bytes": state,
        "state_bytes_declared": declared,
        "outcome": "ok",
    }


def _warm_up(work: Work) -> None:
    """Half the length: libraries' buffers and threads exist afterwards, tables of the full length do not."""
    work.run(work.context())
