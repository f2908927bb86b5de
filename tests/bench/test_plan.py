"""All of one variant in order: what the steps are, how two passes become a measurement, outcomes, and the table."""

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from attnopt.bench.fresh_process import in_fresh_process
from attnopt.bench.latency import Times
from attnopt.bench.params import BenchParams
from attnopt.bench.peak_memory import Memory
from attnopt.bench.plan import Cell, Plan, bench_operation, merge, plans_of, run_bench, steps
from attnopt.bench.subjects import Operation, Student, Teacher
from attnopt.core.errors import UserError
from attnopt.mechanisms import Geometry, load_mechanism
from attnopt.records.distill import MIXED, StudentCard
from attnopt.records.teacher import TeacherManifest, TeacherShape
from attnopt.teacher.params import TeacherParams

from .toys import FEW, QUICK, Planted, TinyGPT2, Toy

pytestmark = pytest.mark.slow


def _parent() -> Iterator[int]:
    yield os.getppid()


def _server() -> int:
    with in_fresh_process(_parent) as process:
        return process.receive(within=60.0)


@pytest.mark.slow
def test_a_planted_slow_mechanism_is_ranked_last():
    subjects = [Planted("slow", 0.05), Planted("softmax", 0.0), Planted("variant", 0.0)]
    found = run_bench([Plan("operation", subjects, [64])], QUICK.model_copy(update={"phases": ["prefill", "decode"]}))
    for phase in ("prefill", "decode"):
        ranked = sorted((m for m in found if m.phase == phase), key=lambda m: min(m.samples))
        assert ranked[-1].subject == "slow"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["memory", "allocator", "killed"])
def test_out_of_memory_is_an_outcome_and_the_other_subject_is_measured(fault):
    found = run_bench([Plan("model", [Toy("variant", fault=fault), Toy("softmax")], [1])], FEW)
    variant, softmax = found
    assert (variant.outcome, variant.samples, variant.median, variant.peak_mib) == ("out-of-memory", [], None, None)
    assert (softmax.outcome, len(softmax.samples)) == ("ok", 3)


@pytest.mark.slow
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


def test_either_pass_that_ends_early_is_the_outcome_and_the_other_is_kept():
    cell = Cell("model", "prefill", 64, 1, "variant")
    times, memory = Times("ok", (0.001, 0.002, 0.003)), Memory("ok", peak_mib=5.0)
    both = merge(cell, times, memory)
    assert (both.outcome, both.unit, both.samples, both.peak_mib) == ("ok", "ms", [1.0, 2.0, 3.0], 5.0)
    assert (both.q1, both.median, both.q3) == (1.5, 2.0, 2.5)
    killed = merge(cell, times, Memory("out-of-memory"))
    assert (killed.outcome, killed.median, killed.peak_mib) == ("out-of-memory", 2.0, None)
    late = merge(cell, Times("over-time"), memory)
    assert (late.outcome, late.median, late.samples, late.peak_mib) == ("over-time", None, [], 5.0)
    assert merge(cell, Times("over-time"), Memory("out-of-memory")).outcome == "over-time"


def test_all_that_the_passes_find_is_in_the_measurement():
    times = Times("ok", (0.5,), noisy=True, synthetic_positions=True)
    memory = Memory("ok", 1.0, 2.0, 3.0, 4.0, False, 5, 6, 7)
    found = merge(Cell("operation", "decode", 8, 2, "softmax"), times, memory).model_dump()
    expected = asdict(memory) | {"level": "operation", "phase": "decode", "length": 8, "batch": 2, "subject": "softmax"}
    expected |= {"unit": "ms/token", "samples": [500.0], "median": 500.0, "q1": 500.0, "q3": 500.0}
    assert found == expected | {"noisy": True, "synthetic_positions": True, "joules": None}


def test_steps_go_level_by_level_and_further_batches_come_last_and_of_models_alone():
    params = BenchParams(phases=["train"], longest_train=16, batches=[4])
    plans = [Plan("model", [], [16, 32]), Plan("operation", [], [8])]
    assert [(s.plan.level, s.length, s.params.batch) for s in steps(plans, params)] == [
        ("model", 16, 1),
        ("operation", 8, 1),
    ]
    every = steps(plans, params.model_copy(update={"phases": ["prefill", "train"]}))
    assert [(s.plan.level, s.length, s.params.batch, s.params.phases) for s in every] == [
        ("model", 16, 1, ["prefill", "train"]), ("model", 32, 1, ["prefill"]), ("operation", 8, 1, ["prefill", "train"]),
        ("model", 16, 4, ["prefill"]), ("model", 32, 4, ["prefill"]),
    ]  # fmt: skip


def test_a_variant_is_measured_beside_the_teacher_and_its_mechanism_beside_sdpa():
    options = load_mechanism("window").Options(window=4, sinks=1)
    shape = dict.fromkeys(TeacherShape.model_fields, 1) | {"architecture": "gpt2", "heads": 4, "kv_heads": 2}
    config = TeacherShape.model_validate(shape | {"head_dim": 16, "hidden": 64})
    manifest = TeacherManifest.model_construct(config=config)
    params = BenchParams(lengths=[8, 16], operation_lengths=[32])
    card = StudentCard.model_construct(kind="window", options=options.model_dump(), layers=[0])
    teacher = TeacherParams(source="path", path="teacher")
    model, operation = plans_of(Path("models/mine/3"), card, manifest, teacher, params)
    geometry = Geometry(heads=4, kv_heads=2, head_dim=16, hidden=64, scaling=0.25)
    assert model == Plan("model", [Student(Path("models/mine/3")), Teacher(teacher)], [8, 16])
    assert [s.name for s in model.subjects] == [s.name for s in operation.subjects] == ["variant", "softmax"]
    own = Operation("window", geometry, options.model_dump())
    assert operation == Plan("operation", [own, Operation("softmax", geometry, name="softmax")], [32])
    mixed = card.model_copy(update={"kind": MIXED, "options": {}})  # it has no one mechanism to measure alone
    assert plans_of(Path("models/mine/3"), mixed, manifest, teacher, params) == [model]


def test_several_variants_in_a_row_are_measured_from_one_server():
    server = _server()
    for name in ("first", "second"):
        (found,) = run_bench([Plan("model", [Toy(name)], [1])], FEW)
        assert (found.subject, found.outcome, len(found.samples)) == (name, "ok", 3)
    assert _server() == server
