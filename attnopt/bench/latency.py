"""Latency: interleaved samples of one phase at one length, all subjects in one fresh process."""

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from attnopt.bench.clock import Limits, interleave, keep_freed_memory, quartiles, seconds
from attnopt.bench.fresh_process import Stopped, in_fresh_process
from attnopt.bench.params import BenchParams
from attnopt.bench.work import Setting, Subject, Work, settle_process
from attnopt.records.bench import Outcome, Phase, Unit


@dataclass(frozen=True)
class Times:
    """What the clock says of one subject in one phase at one length.

    Attributes:
        samples: seconds of single runs, per token in phase decode; empty where the process ended early.
        noisy: whether their spread stayed above `bench.max_spread`.
        synthetic_positions: whether the phase needed more positions than the model has.
    """

    outcome: Outcome
    samples: tuple[float, ...] = ()
    noisy: bool = False
    synthetic_positions: bool = False


class Milliseconds(NamedTuple):
    """Times as a record shows them, in `unit`; None without samples."""

    unit: Unit
    samples: list[float]
    median: float | None
    q1: float | None
    q3: float | None


class Signal(enum.Enum):
    """What the process reports before its results."""

    SETTLED = "the process is set up"
    READY = "one more subject is loaded and has run once"


def measure_latency(subjects: Sequence[Subject], length: int, params: BenchParams) -> dict[tuple[Phase, str], Times]:
    """Times of all phases of `params`, a process for each, interleaved over the subjects; by phase and subject's name.

    Args:
        length: of the context, in tokens.
    Raises:
        UserError: the device is not there. RuntimeError: a subject failed. RunError: its process crashed.
    """
    found = {phase: _side_by_side(subjects, phase, length, params) for phase in params.phases}
    return {(phase, name): times for phase, by_name in found.items() for name, times in by_name.items()}


def in_milliseconds(phase: Phase, samples: Sequence[float]) -> Milliseconds:
    """Samples in seconds as a record shows them. This is the one place that knows the unit."""
    unit: Unit = "ms/token" if phase == "decode" else "ms"
    shown = [s * 1e3 for s in samples]
    q1, median, q3 = quartiles(shown) if shown else (None, None, None)
    return Milliseconds(unit, shown, median, q1, q3)


def _side_by_side(subjects: Sequence[Subject], phase: Phase, length: int, params: BenchParams) -> dict[str, Times]:
    """Times of one phase. A subject that ends the process is left out, and the others start again in another one."""
    found: dict[str, Times] = {}
    waiting = list(subjects)
    while waiting:
        at_work = waiting
        alone, together = 2 * params.max_seconds, 2 * (len(waiting) + 1) * params.max_seconds
        try:
            with in_fresh_process(_sample, waiting, phase, length, params) as process:
                process.receive(together)
                for subject in waiting:
                    at_work = [subject]
                    process.receive(alone)
                at_work = waiting
                return found | process.receive(together)
        except Stopped as stop:
            found |= {subject.name: Times(stop.outcome) for subject in at_work}
            waiting = [subject for subject in waiting if subject.name not in found]
    return found


def _sample(
    subjects: Sequence[Subject], phase: Phase, length: int, params: BenchParams
) -> Iterator[Signal | dict[str, Times]]:
    """Runs in the fresh process. Yields SETTLED, READY for every subject in order, and all subjects' times."""
    keep_freed_memory()
    setting = settle_process(params)
    yield Signal.SETTLED
    samplers: dict[str, Callable[[], float]] = {}
    synthetic: dict[str, bool] = {}
    for subject in subjects:
        runner = subject.load(setting)
        synthetic[subject.name] = runner.is_synthetic(phase, length)
        samplers[subject.name] = sampler(runner.work(phase, length), setting)
        samplers[subject.name]()
        yield Signal.READY
    taken = calmer_take(samplers, params)
    yield {name: times_of(samples, params, synthetic[name]) for name, samples in taken.items()}


def sampler(work: Work, setting: Setting) -> Callable[[], float]:
    """A function that takes one sample of `work`, in seconds per token of the work.

    The context is made once, here; every run gets a copy, which is made outside the clock.
    """
    context = work.context()

    def sample() -> float:
        return seconds(work.run, work.copy(context), setting.cuda) / work.tokens

    return sample


def calmer_take(samplers: dict[str, Callable[[], float]], params: BenchParams) -> dict[str, list[float]]:
    """Interleaved samples in seconds; taken again, once, where they are noisy, and the calmer of both kept."""
    limits = Limits(params.min_iterations, params.min_seconds, params.max_seconds)
    takes = [interleave(samplers, limits)]
    if worst_spread(takes[0]) > params.max_spread:
        takes.append(interleave(samplers, limits, seed=1))
    return min(takes, key=worst_spread)


def worst_spread(samples: dict[str, list[float]]) -> float:
    """The largest (q3 - q1) / median of any subject."""
    return max(quartiles(s).spread for s in samples.values())


def times_of(samples: Sequence[float], params: BenchParams, synthetic_positions: bool = False) -> Times:
    """Samples in seconds with what they amount to: over-time where there are too few, noisy where they spread."""
    return Times(
        outcome="ok" if len(samples) >= params.min_iterations else "over-time",
        samples=tuple(samples),
        noisy=quartiles(samples).spread > params.max_spread,
        synthetic_positions=synthetic_positions,
    )
