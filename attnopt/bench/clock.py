"""The clock: interleaved samples, and what they sum up to."""

import contextlib
import ctypes
import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

ENOUGH = 200
"""Rounds after which more tell nothing new, however quick they are."""

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1
"""Of glibc's malloc.h."""


class Limits(NamedTuple):
    """When the rounds end.

    Attributes:
        min_iterations: rounds that are wanted.
        min_seconds: that they go on at least, all samplers together.
        max_seconds: that one sampler may cost.
    """

    min_iterations: int
    min_seconds: float
    max_seconds: float


class Quartiles(NamedTuple):
    """Of samples, in the samples' unit."""

    q1: float
    median: float
    q3: float

    @property
    def spread(self) -> float:
        """(q3 - q1) / median."""
        return (self.q3 - self.q1) / self.median if self.median else 0.0


def keep_freed_memory() -> None:
    """Make glibc keep what this process frees, for its next arrays; does nothing where there is another allocator.

    Else every page of a large new array costs a fault, about as much time as copying it, in some runs and, as glibc
    adapts its thresholds, not in others.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def quartiles(samples: Sequence[float]) -> Quartiles:
    return Quartiles(*(float(q) for q in np.quantile(samples, [0.25, 0.5, 0.75])))


def seconds(run: Callable[[Any], object], given: Any = None, cuda: bool = False) -> float:
    """Seconds that one `run(given)` takes: wall time, or with `cuda` the time between two events on the stream."""
    if cuda:
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(given)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    before = time.perf_counter()
    run(given)
    return time.perf_counter() - before


def interleave(samplers: Mapping[str, Callable[[], float]], limits: Limits, seed: int = 0) -> dict[str, list[float]]:
    """Rounds that take one sample of everything, each round in a new random order, so that drift hits all alike.

    They end when `min_iterations` rounds are done and `min_seconds` have passed, or `ENOUGH` rounds are done. A
    sampler whose samples have cost more than `max_seconds` drops out with those it has, which may be fewer than
    `min_iterations`.

        quick, slow = interleave({"quick": f, "slow": g}, Limits(10, 0.2, 20.0)).values()

    Args:
        samplers: by name, a function that takes one sample and returns it, in seconds.
        seed: of the rounds' orders.
    Returns: all samples by name, in the order of the rounds.
    """
    order = random.Random(seed)
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    spent = dict.fromkeys(samplers, 0.0)
    active, start, rounds = list(samplers), time.perf_counter(), 0
    with no_collection():
        while active and (
            rounds < limits.min_iterations or (rounds < ENOUGH and time.perf_counter() - start < limits.min_seconds)
        ):
            for name in order.sample(active, len(active)):
                before = time.perf_counter()
                samples[name].append(samplers[name]())
                spent[name] += time.perf_counter() - before
            active = [name for name in active if spent[name] < limits.max_seconds]
            rounds += 1
    return samples


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of the samples."""
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
