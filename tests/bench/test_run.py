"""The stage and the benchmark script, from their inputs to their outputs, on tiny models; and what is not measured again."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import Workspace
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from attnopt import mechanisms
from attnopt.bench.subjects import Teacher
from attnopt.bench.work import Setting
from attnopt.cli import app
from attnopt.core.files import read_json
from attnopt.core.machine import environment
from attnopt.records.bench import BenchRecord
from attnopt.records.distill import StudentCard
from attnopt.records.teacher import TeacherManifest
from attnopt.student import files as delta
from attnopt.student.build import build_student
from attnopt.teacher import model as teacher
from attnopt.teacher.params import TeacherParams

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PARAMS = """\
variants: {narrow: window}
seeds: [3]
teacher: {source: path, path: teacher}
bench: {lengths: [16, 32], operation_lengths: [48], min_iterations: 2, min_seconds: 0, max_spread: 1.0e+9, longest_train: 16, decode_tokens: 2, threads: 1, device: cpu}
narrow: {window: 4, sinks: 1}
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with params, a teacher of 24 positions, its manifest, and a student."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=8, n_positions=24, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained("teacher")
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a").save_pretrained("teacher")
    Path("params.yaml").write_text(PARAMS)
    from attnopt import settings as params

    settings = params.load_settings()
    model, _ = teacher.load_teacher(settings.teacher)
    variant = settings.variant("narrow")
    student = build_student(model, variant.swap, seed=3)
    card = StudentCard(
        variant="narrow",
        kind="window",
        control=None,
        options=variant.options.model_dump(),
        layers=None,
        start="teacher",
        seed=3,
        teacher=TeacherParams(source="path", path="teacher").model_dump(),
        fingerprint=teacher.teacher_fingerprint(model),
        key="",
    )
    delta.save_student(Path("models/narrow/3"), student, model, card)
    manifest = {"source": {}, "fingerprint": "", "logits": "hidden", "corpus": "", "splits": {}}
    about = {"config": teacher.describe_teacher(model), "environment": environment()}
    TeacherManifest.model_validate(manifest | about).write("data/teacher/manifest.json")
    return tmp_path


@pytest.mark.slow
def test_the_stage_writes_a_record_of_both_levels(project):
    app(["bench", "narrow"], standalone_mode=False)
    made = BenchRecord.read(project / "results/bench/narrow/record.json").model_dump()
    assert (made["variant"], made["kind"], made["control"], made["machine"]) == ("narrow", "window", None, "default")
    rows = {(m["level"], m["phase"], m["length"], m["subject"]): m for m in made["measurements"]}
    where = [("model", 16), ("model", 32), ("operation", 48)]
    assert rows.keys() == {
        (a, p, n, s)
        for a, n in where
        for p in ("prefill", "decode", "train")[: 3 if n <= 16 else 2]
        for s in ("variant", "softmax")
    }
    assert len(made["key"]) == 64
    assert {m["outcome"] for m in rows.values()} == {"ok"}
    assert all(len(m["samples"]) == 2 for m in rows.values())
    cls = mechanisms.load_mechanism("window")
    window = cls(
        mechanisms.Geometry(heads=2, kv_heads=2, head_dim=16, hidden=32, scaling=0.25), cls.Options(window=4, sinks=1)
    )
    layers = {"model": 2, "operation": 1}
    for (level, phase, length, subject), m in rows.items():
        assert m["synthetic_positions"] == (level == "model" and length == 32)
        expected = window.state_bytes(1, length, torch.float32) if subject == "variant" else 2 * 32 * length * 4
        assert m["state_bytes_declared"] == (None if phase == "train" else expected * layers[level])


def test_the_baseline_is_the_teacher_whose_softmax_keeps_a_state_that_grows_in_place(project):
    setting = Setting(batch=1, decode_tokens=2, dtype=torch.float32, device=torch.device("cpu"))
    teacher_params = TeacherParams(source="path", path="teacher")
    runner = Teacher(teacher_params).load(setting)
    layer = runner.work("prefill", 10).run(None).layers[1]
    assert (layer.state.k.count, layer.state.k.capacity) == (10, 10)
    ids = torch.arange(6)[None]
    untouched, _ = teacher.load_teacher(teacher_params)
    torch.testing.assert_close(runner.model(ids).logits, untouched(ids).logits)


@pytest.mark.slow
def test_the_benchmark_script_measures_what_its_results_lack(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import mechanisms as script

    file = tmp_path / "results.json"
    arguments = ["--lengths", "8", "16", "--only", "window", "--threads", "1", "--device", "cpu", "--out", str(file)]
    monkeypatch.setattr(sys, "argv", ["mechanisms.py", *arguments])
    monkeypatch.setattr(script, "LONG", 16)
    script.main()
    first = capsys.readouterr()
    rows = {(r["name"], r["phase"], r["length"]): r for r in json.loads(file.read_text())["rows"]}
    assert rows.keys() == {
        (k, p, n) for k in ("sdpa", "window") for p in ("prefill", "train", "decode") for n in (8, 16)
    }
    assert all(r["speedup"] == 1 for (name, _, _), r in rows.items() if name == "sdpa")
    assert {key[2] for key, r in rows.items() if "peak_mib" in r} == {16}
    assert "| window |" in first.out
    script.main()
    assert {(r["name"], r["phase"], r["length"]): r for r in json.loads(file.read_text())["rows"]} == rows
    assert capsys.readouterr().out == first.out


FOUND = {"cpu": "Sparc", "cores": 4, "ram_gib": 8, "gpus": []}
QUICK = {"lengths": [8], "operation_lengths": [], "min_iterations": 2, "min_seconds": 0, "phases": ["decode"], "max_spread": 1e9, "threads": 1, "device": "cpu"}  # fmt: skip


@pytest.fixture
def benched(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr("stages.bench.machine_fingerprint", lambda: FOUND)
    workspace.set(distill={"steps": 0}, bench=QUICK)
    workspace.run("tokenize", "cache-logits", "distill softmax", "distill none", "bench")
    return workspace


def stamps() -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in Path("results/bench").glob("*/record.json")}


def remade(before: dict[str, int]) -> set[str]:
    return {name for name, stamp in stamps().items() if stamp != before.get(name)}


@pytest.mark.slow
def test_what_holds_is_not_measured_again(
    benched: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    before = stamps()
    assert set(before) == {"softmax", "none"}
    assert read_json("results/bench/none/record.json")["hardware"] == "Sparc, 4 cores, 8 GiB"
    capsys.readouterr()
    benched.set(report={"memory_gib": 1.0}, sample={"new_tokens": 3})
    benched.run("bench")
    assert not remade(before)
    assert capsys.readouterr().err == ""
    benched.run("bench none")
    assert remade(before) == {"none"}
    before = stamps()
    monkeypatch.setattr("stages.bench.machine_fingerprint", lambda: FOUND | {"gpus": ["H200, 140 GiB"]})
    benched.run("bench")
    assert remade(before) == {"softmax", "none"}
    told = capsys.readouterr().err
    assert "was: Sparc, 4 cores, 8 GiB\n" in told
    assert "is:  Sparc, 4 cores, 8 GiB; H200, 140 GiB\n" in told
    before = stamps()
    benched.set(bench=QUICK | {"lengths": [12]})
    benched.run("bench")
    assert remade(before) == {"softmax", "none"}
