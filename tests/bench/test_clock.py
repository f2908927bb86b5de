"""The clock's samples, without processes: rounds, limits and what drift does to them."""

import platform
import subprocess
import sys
import time
from functools import partial

import pytest

from attnopt.bench import clock
from attnopt.bench.clock import Limits, interleave, quartiles, seconds


def test_interleave_takes_one_sample_of_each_in_every_round():
    calls: list[str] = []

    def sampler(name: str):
        return lambda: calls.append(name) or float(len(calls))

    found = interleave({"a": sampler("a"), "b": sampler("b")}, Limits(10, 0, 60))
    assert [len(s) for s in found.values()] == [10, 10]
    assert all(set(calls[i : i + 2]) == {"a", "b"} for i in range(0, 20, 2))
    assert len({tuple(calls[i : i + 2]) for i in range(0, 20, 2)}) == 2, "each goes first now and then"


class Clock:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def work(self, cost: float) -> float:
        self.now += cost
        return cost


@pytest.fixture
def fake(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(clock, "time", made)
    return made


def test_interleave_goes_on_for_the_minimum_time(fake):
    found = interleave({"a": lambda: fake.work(1)}, Limits(2, 7, 60))
    assert found["a"] == [1] * 7
    assert len(interleave({"a": lambda: fake.work(1e-6)}, Limits(2, 7, 60))["a"]) == clock.ENOUGH


def test_a_sampler_over_its_time_drops_out_and_the_others_go_on(fake):
    found = interleave({"slow": lambda: fake.work(4), "quick": lambda: fake.work(1)}, Limits(20, 0, 10))
    assert len(found["slow"]) == 3
    assert len(found["quick"]) == 10, "which are its ten seconds"


def test_drift_hits_interleaved_subjects_alike(fake):
    """A machine that slows down tenfold during the run: equal subjects still come out equal."""

    def drifting() -> float:
        return fake.work(1) and 1 + fake.now / 10

    found = interleave({"a": drifting, "b": drifting}, Limits(45, 0, 60))
    a, b = (quartiles(samples).median for samples in found.values())
    assert a / b == pytest.approx(1, abs=0.05)


def test_quartiles_and_spread():
    found = quartiles([4, 1, 3, 2, 5])
    assert (found.q1, found.median, found.q3) == (2, 3, 4)
    assert found.spread == pytest.approx(2 / 3)


def test_seconds_measures_the_run_and_hands_over_what_it_is_given():
    given = []
    taken = seconds(lambda x: given.append(x) or time.sleep(0.02), "context")
    assert given == ["context"]
    assert 0.02 <= taken < 2


def test_a_gpu_is_timed_by_its_own_events(monkeypatch):
    """The time of the stream between two events, not of the call that only queued the work."""
    stream = []

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            self.at = sum(stream)

        def synchronize(self) -> None:
            stream.append(0)

        def elapsed_time(self, end: "Event") -> float:
            return end.at - self.at

    monkeypatch.setattr("torch.cuda.Event", Event)
    assert seconds(stream.append, 250.0, cuda=True) == 0.25


FAULTS = """
import resource, statistics, sys
import torch
from attnopt.bench.clock import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()


def step() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


for _ in range(15):
    step()
print(statistics.median(step() for _ in range(15)))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told to keep memory")
def test_kept_memory_costs_no_page_faults() -> None:
    """Once it has settled: the first arrays still find no hole of their size (glibc before 2.38 wants one with room)."""
    run = partial(subprocess.run, capture_output=True, text=True, check=True)
    faults = {how: int(run([sys.executable, "-c", FAULTS, how]).stdout) for how in ("kept", "given back")}
    assert faults["kept"] < 100 < 1000 < faults["given back"]
