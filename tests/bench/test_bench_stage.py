"""The bench looks at every variant's record: the same hardware measures nothing again, another one all."""

from pathlib import Path

import pytest
from conftest import Workspace

from attnopt.core.files import read_json

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
