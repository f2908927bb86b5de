"""Run the bench: a fresh process for every level, phase and length for latency, and for every subject for memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from attnopt import mechanisms
from attnopt.bench.clock import Limits, interleave, keep_freed_memory, quartiles, seconds
from attnopt.bench.energy import measure_energy
from attnopt.bench.fresh_process import Stopped, in_fresh_process
from attnopt.bench.params import BenchParams, Phase
from attnopt.bench.peak_memory import Fields, measure_memory
from attnopt.bench.subjects import Operation, Setting, Subject, Work, settle_process
from attnopt.bench.tables import Level, Measurement, bench_table, summarize_samples, unit_of
from attnopt.core.errors import UserError
from attnopt.mechanisms.base import Geometry

GPT2 = Geometry(heads=12, kv_heads=12, head_dim=64, hidden=768, scaling=64**-0.5)
ALONE = BenchParams(longest_train=1024)


@dataclass(frozen=True)
class Plan:
    """One level: its subjects, measured side by side, and the lengths."""

    level: Level
    subjects: Sequence[Subject]
    lengths: Sequence[int]


def run_bench(
    plans: Sequence[Plan], params: BenchParams, progress: Callable[[list[Any]], Iterable[Any]] = iter
) -> list[Measurement]:
    """All phases of all plans' subjects, lengths and batches. Raises UserError; RuntimeError where a subject fails."""
    return [row for plan, at, length in progress(_steps(plans, params)) for row in _side_by_side(plan, at, length)]


def _steps(plans: Sequence[Plan], params: BenchParams) -> list[tuple[Plan, BenchParams, int]]:
    """Further batches, of the whole model alone, come after everything at the first one."""
    every = [(plan, params.at(n, params.batch), n) for plan in plans for n in plan.lengths]
    models = [plan for plan in plans if plan.level == "model"]
    every += [(plan, params.at(n, batch), n) for batch in params.batches for plan in models for n in plan.lengths]
    return [step for step in every if step[1].phases]


def _side_by_side(plan: Plan, params: BenchParams, length: int) -> Iterator[Measurement]:
    times = measure_latency(plan.subjects, length, params)
    peaks = measure_memory(plan.subjects, length, params)
    for phase, subject in ((p, s) for p in params.phases for s in plan.subjects):
        fields = _merge(times[phase, subject.name], peaks[phase, subject.name])
        if params.energy and fields["outcome"] == "ok":
            fields["joules"] = measure_energy(subject, phase, length, params)
        yield _measurement(plan.level, phase, length, params.batch, subject.name, fields)


def bench_operation(kind: str, lengths: Sequence[int], params: BenchParams | None = None) -> str:
    """A table of one mechanism with its default options beside SDPA, at GPT-2's geometry (12 heads of 64).

    Raises: UserError where there is no such mechanism or a length is not positive.
    """
    if min(lengths) < 1:
        raise UserError(f"--length: {min(lengths)} is no number of tokens; 1 or more is")
    try:
        mechanisms.load_mechanism(kind)
    except ValueError as error:
        raise UserError(str(error)) from None
    subjects = [Operation(kind, GPT2), Operation("softmax", GPT2, name="softmax")]
    return bench_table(run_bench([Plan("operation", subjects, lengths)], params or ALONE), kind)


def _measurement(level: Level, phase: Phase, length: int, batch: int, subject: str, fields: Fields) -> Measurement:
    return Measurement(
        level=level, phase=phase, length=length, batch=batch, subject=subject, unit=unit_of(phase), **fields
    )


def _merge(time: Fields, memory: Fields) -> Fields:
    """One measurement's fields; where either pass ended early, that is its outcome."""
    return memory | time | {"outcome": next((f["outcome"] for f in (time, memory) if f["outcome"] != "ok"), "ok")}


def measure_latency(subjects: Sequence[Subject], length: int, params: BenchParams) -> dict[tuple[Phase, str], Fields]:
    """Times of all phases, in a process for each, interleaved over the subjects."""
    found = {phase: _together(subjects, phase, length, params) for phase in params.phases}
    return {(phase, name): fields for phase, by_name in found.items() for name, fields in by_name.items()}


def _together(subjects: Sequence[Subject], phase: Phase, length: int, params: BenchParams) -> dict[str, Fields]:
    """Times of one phase; a subject that stops the process is left out, the others go on in another one."""
    found: dict[str, Fields] = {}
    waiting = list(subjects)
    while waiting:
        doing: str | None = None
        alone, together = 2 * params.max_seconds, 2 * (len(waiting) + 1) * params.max_seconds

        def patience(item: Any, alone: float = alone, together: float = together) -> float:
            return alone if isinstance(item, str) else together

        try:
            for item in in_fresh_process(_latency, waiting, phase, length, params, patience=patience):
                if isinstance(item, dict):
                    found |= item
                else:
                    doing = item
            break
        except Stopped as stop:
            guilty = [s for s in waiting if doing in (None, s.name)]
            found |= {s.name: {"outcome": stop.outcome} for s in guilty}
            waiting = [s for s in waiting if s not in guilty]
    return found


def _latency(
    subjects: Sequence[Subject], phase: Phase, length: int, params: BenchParams
) -> Iterator[str | dict[str, Fields] | None]:
    """Yields the name of the subject at work (None: all in turn) and, at the end, the results."""
    keep_freed_memory()
    setting = settle_process(params)
    samplers: dict[str, Callable[[], float]] = {}
    synthetic: dict[str, bool] = {}
    for subject in subjects:
        yield subject.name
        runner = subject.load(setting)
        synthetic[subject.name] = runner.is_synthetic(phase, length)
        samplers[subject.name] = sampler(runner.work(phase, length), setting)
        samplers[subject.name]()
    yield None
    results = _timed(samplers, params)
    yield {name: fields | {"synthetic_positions": synthetic[name]} for name, fields in results.items()}


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
    return summarize_samples([s * 1e3 for s in samples]) | {
        "outcome": "ok" if done else "over-time",
        "noisy": quartiles(samples).spread > params.max_spread,
    }
