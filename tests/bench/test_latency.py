"""The ruler, tested on subjects of known cost, each in processes of its own."""

import pytest
import torch

from attnopt.bench.clock import quartiles
from attnopt.bench.latency import Plan, _timed, bench_operation, measure_latency, run_bench
from attnopt.bench.params import BenchParams
from attnopt.bench.peak_memory import memory
from attnopt.bench.subjects import Operation
from attnopt.core.errors import UserError
from attnopt.mechanisms import Geometry
from attnopt.statistics import fit_exponent

from .toys import MIB, Planted, TinyGPT2, Toy

QUICK = BenchParams(phases=["prefill"], threads=1, device="cpu", max_spread=1e9, min_seconds=0)
FEW = QUICK.model_copy(update={"min_iterations": 3})


def test_a_known_sleep_is_measured_within_a_tenth():
    """A busy machine wakes a sleeper late, never early: the quickest sample is the ruler's own."""
    fields = measure_latency([Toy("variant", seconds=0.1)], 1, QUICK)["prefill", "variant"]
    assert len(fields["samples"]) == 10
    assert min(fields["samples"]) == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("mib", [4, 64])
def test_a_known_allocation_is_measured_within_a_tenth(mib):
    fields = memory(Toy("variant", mib=mib, seconds=0.2), 1, QUICK)["prefill"]
    for ruler in ("peak_mib", "peak_sampled_mib", "peak_allocated_mib"):
        assert fields[ruler] == pytest.approx(mib, rel=0.1), ruler
    assert fields["memory_agrees"]


def test_memory_behind_the_allocators_back_is_flagged():
    fields = memory(Toy("variant", mib=16, outside=16), 1, QUICK)["prefill"]
    assert fields["peak_mib"] == pytest.approx(32, rel=0.1)
    assert fields["peak_allocated_mib"] == pytest.approx(16, rel=0.1)
    assert fields["memory_agrees"] is False


def test_linear_and_quadratic_time_are_recovered():
    lengths = [1, 2, 4]
    toys = [Toy("linear", seconds=0.03, exponent=1), Toy("quadratic", seconds=0.03, exponent=2)]
    found = [measure_latency(toys, length, FEW) for length in lengths]
    for toy in toys:
        times = [min(f["prefill", toy.name]["samples"]) for f in found]
        assert fit_exponent(lengths, times).exponent == pytest.approx(toy.exponent, abs=0.1), times


def test_linear_and_quadratic_memory_are_recovered():
    lengths = [1, 2, 4]
    for toy in (Toy("linear", mib=8, exponent=1), Toy("quadratic", mib=8, exponent=2)):
        peaks = [memory(toy, length, QUICK)["prefill"]["peak_mib"] for length in lengths]
        assert fit_exponent(lengths, peaks).exponent == pytest.approx(toy.exponent, abs=0.1), peaks


def test_a_planted_slow_mechanism_is_ranked_last():
    subjects = [Planted("slow", 0.05), Planted("softmax", 0.0), Planted("variant", 0.0)]
    found = run_bench([Plan("operation", subjects, [64])], QUICK.model_copy(update={"phases": ["prefill", "decode"]}))
    for phase in ("prefill", "decode"):
        ranked = sorted((m for m in found if m.phase == phase), key=lambda m: min(m.samples))
        assert ranked[-1].subject == "slow"


@pytest.mark.parametrize("fault", ["memory", "allocator", "killed"])
def test_out_of_memory_is_an_outcome_and_the_other_subject_is_measured(fault):
    found = run_bench([Plan("model", [Toy("variant", fault=fault), Toy("softmax")], [1])], FEW)
    variant, softmax = found
    assert (variant.outcome, variant.samples, variant.median, variant.peak_mib) == ("out-of-memory", [], None, None)
    assert (softmax.outcome, len(softmax.samples)) == ("ok", 3)


def test_what_was_measured_before_the_fault_is_kept():
    params = FEW.model_copy(update={"phases": ["prefill", "decode"]})
    found = measure_latency([Toy("variant", fault="killed", fails_in="decode"), Toy("softmax")], 1, params)
    outcomes = {key: fields["outcome"] for key, fields in found.items()}
    assert outcomes.pop(("decode", "variant")) == "out-of-memory"
    assert set(outcomes.values()) == {"ok"}
    assert len(outcomes) == 3


def test_a_subject_that_hangs_is_over_time():
    params = FEW.model_copy(update={"max_seconds": 2.5})
    found = measure_latency([Toy("variant", fault="hangs"), Toy("softmax")], 1, params)
    assert found["prefill", "variant"] == {"outcome": "over-time"}
    assert found["prefill", "softmax"]["outcome"] == "ok"


def test_a_slow_subject_is_over_time_with_the_samples_that_it_has():
    params = QUICK.model_copy(update={"max_seconds": 1.0})
    found = measure_latency([Toy("variant", seconds=0.4), Toy("softmax")], 1, params)
    variant, softmax = found["prefill", "variant"], found["prefill", "softmax"]
    assert variant["outcome"] == "over-time"
    assert 1 <= len(variant["samples"]) <= 3
    assert (softmax["outcome"], len(softmax["samples"])) == ("ok", 10)


def test_a_subject_that_breaks_is_a_failure():
    with pytest.raises(RuntimeError, match="a toy broke"):
        measure_latency([Toy("variant", fault="broken")], 1, FEW)


def test_a_gpu_that_is_not_there_is_the_users_mistake():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="torch sees no GPU"):
        measure_latency([Toy("variant")], 1, FEW.model_copy(update={"device": "cuda"}))


def test_noise_is_measured_again_once_and_flagged_where_it_stays():
    calls = {"steady": 0, "noisy": 0}

    def steady() -> float:
        calls["steady"] += 1
        return 1.0

    def noisy() -> float:
        calls["noisy"] += 1
        return float(calls["noisy"] % 2 + 1)

    found = _timed({"steady": steady, "noisy": noisy}, BenchParams(min_seconds=0))
    assert calls == {"steady": 20, "noisy": 20}
    assert found["noisy"]["noisy"]
    assert not found["steady"]["noisy"]


def test_of_two_takes_the_calmer_is_kept():
    values = iter([1.0, 2.0] * 5 + [3.0] * 10)
    found = _timed({"a": lambda: next(values)}, BenchParams(min_seconds=0))["a"]
    assert quartiles(found["samples"]).spread == 0
    assert (found["median"], found["noisy"]) == (3000.0, False)


def test_models_beyond_their_positions_are_flagged_and_states_are_counted():
    params = QUICK.model_copy(update={"phases": ["prefill", "decode"], "min_iterations": 2})
    subjects = [TinyGPT2("variant", "none"), TinyGPT2("softmax")]
    found = {(m.phase, m.length, m.subject): m for m in run_bench([Plan("model", subjects, [32, 64, 96])], params)}
    flagged = {(phase, length) for (phase, length, _), m in found.items() if m.synthetic_positions}
    assert flagged == {("decode", 64), ("prefill", 96), ("decode", 96)}
    for (_, length, subject), m in found.items():
        bytes_of_keys_and_values = 2 * 2 * length * 32 * 4 if subject == "softmax" else 0
        assert m.state_bytes == m.state_bytes_declared == bytes_of_keys_and_values
        assert m.median is not None
        assert m.outcome == "ok"


def test_a_decoding_step_holds_the_state_before_it_and_the_one_after():
    params = QUICK.model_copy(update={"phases": ["decode"]})
    geometry = Geometry(heads=2, kv_heads=2, head_dim=64, hidden=128, scaling=0.125)
    found = memory(Operation("softmax", geometry), 4096, params)["decode"]
    state = 2 * 2 * 4096 * 64 * 4
    assert found["state_bytes"] == found["state_bytes_declared"] == state
    assert found["peak_mib"] * MIB == pytest.approx(2 * state, rel=0.1)


@pytest.mark.parametrize(
    ("kind", "lengths", "reason"), [("sofmax", [8], "did you mean softmax"), ("softmax", [0], "0")]
)
def test_the_command_alone_refuses_what_is_not_there(kind, lengths, reason):
    with pytest.raises(UserError, match=reason):
        bench_operation(kind, lengths)


def test_the_command_alone_prints_a_readable_table():
    lines = bench_operation("softmax", [32], FEW).splitlines()
    assert len(lines) == 3
    cells = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert cells[:3] == ["operation", "prefill", "32"]
    assert cells[-2:] == ["192.0", "192.0"]
