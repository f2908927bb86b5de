"""The memory pass, tested on subjects whose memory is known, each in processes of its own."""

import statistics
from types import SimpleNamespace

import pytest

from attnopt.bench import peak_memory
from attnopt.bench.peak_memory import Memory, measure_peak
from attnopt.bench.subjects import Operation
from attnopt.bench.work import Work
from attnopt.mechanisms import Geometry
from attnopt.statistics import fit_exponent

from .toys import MIB, QUICK, Cuda, FailsLater, Toy


@pytest.mark.slow
@pytest.mark.parametrize("mib", [4, 64])
def test_a_known_allocation_is_measured_within_a_tenth(mib):
    """In the median of three: now and then a library takes memory of its own meanwhile."""
    takes = [measure_peak(Toy("variant", mib=mib, seconds=0.1), "prefill", 1, QUICK) for _ in range(3)]
    for ruler in ("peak_mib", "peak_sampled_mib", "peak_allocated_mib"):
        assert statistics.median(getattr(take, ruler) for take in takes) == pytest.approx(mib, rel=0.1), ruler
    assert all(take.memory_agrees for take in takes)


def test_memory_behind_the_allocators_back_is_flagged():
    found = measure_peak(Toy("variant", mib=16, outside=16), "prefill", 1, QUICK)
    assert found.peak_mib == pytest.approx(32, rel=0.1)
    assert found.peak_allocated_mib == pytest.approx(16, rel=0.1)
    assert found.memory_agrees is False


def test_linear_and_quadratic_memory_are_recovered():
    lengths = [1, 2, 4]
    for toy in (Toy("linear", mib=8, exponent=1), Toy("quadratic", mib=8, exponent=2)):
        peaks = [measure_peak(toy, "prefill", length, QUICK).peak_mib for length in lengths]
        assert fit_exponent(lengths, peaks).exponent == pytest.approx(toy.exponent, abs=0.1), peaks


def test_a_decoding_step_that_grows_a_state_holds_old_values_beside_the_memory_for_twice_as_many():
    geometry = Geometry(heads=2, kv_heads=2, head_dim=64, hidden=128, scaling=0.125)
    found = measure_peak(Operation("softmax", geometry), "decode", 4096, QUICK)
    state = 2 * 2 * 4096 * 64 * 4
    assert found.state_bytes == found.state_bytes_declared == state
    assert found.peak_mib * MIB == pytest.approx(2.5 * state, rel=0.1)
    assert found.memory_agrees


def test_the_memory_pass_on_a_gpu_asks_the_allocator_alone(monkeypatch):
    gpu = Cuda()
    gpu.install(monkeypatch)
    on_gpu = SimpleNamespace(cuda=True)
    work = Work(lambda _: gpu.take(30 * MIB, 40 * MIB))
    (found,) = peak_memory._peak(work, Toy("variant"), "train", 1, on_gpu)
    assert (found.peak_mib, found.peak_allocated_mib, found.peak_reserved_mib) == (30, 30, 40)
    assert (found.outcome, found.memory_agrees, found.peak_sampled_mib) == ("ok", True, None)


def test_an_early_end_is_the_outcome_and_a_peak_that_is_known_by_then_is_kept():
    """The run is repeated for the allocator's count: what ends it there costs that count alone."""
    assert measure_peak(Toy("variant", fault="killed"), "prefill", 1, QUICK) == Memory("out-of-memory")
    late = measure_peak(FailsLater("variant", mib=16), "prefill", 1, QUICK)
    assert (late.outcome, late.peak_allocated_mib, late.memory_agrees) == ("ok", None, None)
    assert late.peak_mib == pytest.approx(16, rel=0.1)
