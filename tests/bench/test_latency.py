"""Latency, tested on subjects of known cost, each in processes of its own; and what the samples amount to."""

import time

import pytest
import torch

from attnopt.bench.clock import quartiles
from attnopt.bench.latency import Times, calmer_take, in_milliseconds, measure_latency, sampler, times_of
from attnopt.bench.params import BenchParams
from attnopt.bench.work import Setting, Work
from attnopt.core.errors import UserError
from attnopt.statistics import fit_exponent

from .toys import FEW, QUICK, FailsLater, Toy


@pytest.mark.slow
def test_a_known_sleep_is_measured_within_a_tenth():
    """A busy machine wakes a sleeper late, never early: the quickest sample is the ruler's own."""
    times = measure_latency([Toy("variant", seconds=0.1)], 1, QUICK)["prefill", "variant"]
    assert len(times.samples) == 10
    assert min(times.samples) == pytest.approx(0.1, rel=0.1)


@pytest.mark.slow
def test_linear_and_quadratic_time_are_recovered():
    """By the quickest of the samples, of which short sleeps get more: a busy machine's delay weighs more on them."""
    lengths = [1, 2, 4]
    toys = [Toy("linear", seconds=0.03, exponent=1), Toy("quadratic", seconds=0.03, exponent=2)]
    takes = {
        length: QUICK.model_copy(update={"min_iterations": n}) for length, n in zip(lengths, (10, 5, 3), strict=True)
    }
    found = [measure_latency(toys, length, params) for length, params in takes.items()]
    for toy in toys:
        times = [min(f["prefill", toy.name].samples) for f in found]
        assert fit_exponent(lengths, times).exponent == pytest.approx(toy.exponent, abs=0.1), times


@pytest.mark.slow
def test_what_was_measured_before_the_fault_is_kept():
    params = FEW.model_copy(update={"phases": ["prefill", "decode"]})
    found = measure_latency([Toy("variant", fault="killed", fails_in="decode"), Toy("softmax")], 1, params)
    outcomes = {key: times.outcome for key, times in found.items()}
    assert outcomes.pop(("decode", "variant")) == "out-of-memory"
    assert set(outcomes.values()) == {"ok"}
    assert len(outcomes) == 3


def test_an_early_end_while_subjects_take_turns_is_the_outcome_of_them_all():
    """From outside nobody can tell whose turn it was."""
    found = measure_latency([Toy("softmax"), FailsLater("variant")], 1, FEW)
    assert set(found.values()) == {Times("out-of-memory")}


@pytest.mark.slow
def test_a_subject_that_hangs_is_over_time():
    params = FEW.model_copy(update={"max_seconds": 2.5})
    found = measure_latency([Toy("variant", fault="hangs"), Toy("softmax")], 1, params)
    assert found["prefill", "variant"] == Times("over-time")
    assert found["prefill", "softmax"].outcome == "ok"


@pytest.mark.slow
def test_a_slow_subject_is_over_time_with_the_samples_that_it_has():
    params = QUICK.model_copy(update={"max_seconds": 1.0})
    found = measure_latency([Toy("variant", seconds=0.4), Toy("softmax")], 1, params)
    variant, softmax = found["prefill", "variant"], found["prefill", "softmax"]
    assert variant.outcome == "over-time"
    assert 1 <= len(variant.samples) <= 3
    assert (softmax.outcome, len(softmax.samples)) == ("ok", 10)


def test_a_subject_that_breaks_is_a_failure():
    with pytest.raises(RuntimeError, match="a toy broke"):
        measure_latency([Toy("variant", fault="broken")], 1, FEW)


def test_a_gpu_that_is_not_there_is_the_users_mistake():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="torch sees no GPU"):
        measure_latency([Toy("variant")], 1, FEW.model_copy(update={"device": "cuda"}))


@pytest.mark.slow
def test_noise_is_measured_again_once_and_flagged_where_it_stays():
    calls = {"steady": 0, "noisy": 0}

    def steady() -> float:
        calls["steady"] += 1
        return 1.0

    def noisy() -> float:
        calls["noisy"] += 1
        return float(calls["noisy"] % 2 + 1)

    params = BenchParams(min_seconds=0)
    found = {name: times_of(s, params) for name, s in calmer_take({"steady": steady, "noisy": noisy}, params).items()}
    assert calls == {"steady": 20, "noisy": 20}
    assert found["noisy"].noisy
    assert not found["steady"].noisy


@pytest.mark.slow
def test_of_two_takes_the_calmer_is_kept():
    values = iter([1.0, 2.0] * 5 + [3.0] * 10)
    params = BenchParams(min_seconds=0)
    found = times_of(calmer_take({"a": lambda: next(values)}, params)["a"], params)
    assert quartiles(found.samples).spread == 0
    assert (in_milliseconds("prefill", found.samples).median, found.noisy) == (3000.0, False)


def test_a_sample_is_per_token_and_every_run_gets_the_context_as_it_was():
    seen = []
    work = Work(lambda context: seen.append(len(context)) or context.append(0) or time.sleep(0.01), list, list, 10**6)
    sample = sampler(work, Setting(1, 1, torch.float32, torch.device("cpu")))
    assert all(1e-8 <= sample() < 1e-4 for _ in range(3))
    assert seen == [0, 0, 0]


def test_too_few_samples_are_over_time():
    params = BenchParams(min_iterations=3)
    assert times_of([1.0, 1.0], params) == Times("over-time", (1.0, 1.0))
    assert times_of([1.0, 1.0, 1.0], params, True) == Times("ok", (1.0, 1.0, 1.0), synthetic_positions=True)


def test_seconds_are_shown_in_milliseconds_and_decoding_per_token():
    shown = in_milliseconds("train", (0.005, 0.001, 0.003))
    assert shown == ("ms", [5.0, 1.0, 3.0], 3.0, 2.0, 4.0)
    assert in_milliseconds("decode", ()) == ("ms/token", [], None, None, None)
