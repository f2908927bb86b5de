"""The trainer: it learns, stops where it must, and survives being killed without a trace in its results."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT, Workspace
from safetensors.torch import load_file

from attnopt import settings as params
from attnopt.core.checkpoint import Checkpoint
from attnopt.core.errors import RunError, UserError
from attnopt.records.distill import HistoryRow
from attnopt.student.attach import attachment_of
from attnopt.student.files import changed_weights
from attnopt.targets.dataset import load_dataset
from attnopt.teacher.model import teacher_fingerprint
from attnopt.training import trainer as distill
from attnopt.training.jobs import training_jobs
from attnopt.training.params import DistillParams
from attnopt.training.resume import Phase
from training.world import record


@pytest.fixture
def prepared(workspace: Workspace) -> Workspace:
    workspace.run("tokenize", "cache-logits")
    return workspace


def test_a_zero_step_softmax_student_is_the_teacher(prepared: Workspace) -> None:
    prepared.run("distill softmax", "evaluate softmax")
    result = json.loads(Path("results/evaluate/softmax/0/record.json").read_text())["splits"]["test"]
    assert abs(result["kl_forward"]) < 1e-5
    assert abs(result["kl_reverse"]) < 1e-5
    assert result["ppl_ratio"] == pytest.approx(1, abs=1e-4)
    assert record("softmax")["trained_parameters"] == 0


def test_training_lowers_the_held_out_kl(prepared: Workspace) -> None:
    prepared.set(distill={"steps": 60, "lr": 0.01})
    prepared.run("distill none")
    found = record("none")
    assert found["kl_end"] < 0.8 * found["kl_start"]
    history = pd.read_csv("results/distill/none/0/history.csv")
    assert list(history.columns) == list(HistoryRow.model_fields)
    assert history.step.tolist()[-1] == 60
    assert history.valid_kl.dropna().iloc[-1] == pytest.approx(found["kl_end"], abs=1e-5)


@pytest.mark.parametrize("scope", ["mechanism", "attention", "all"])
def test_the_scope_decides_which_weights_move(prepared: Workspace, scope: str) -> None:
    prepared.set(distill={"train": scope})
    prepared.run("distill none")
    moved = set(load_file("models/none/0/weights.safetensors"))
    attention = {n for n in moved if ".attn." in n}
    assert bool(attention) == (scope != "mechanism")
    assert bool(moved - attention) == (scope == "all")


def test_a_student_copies_only_what_trains(prepared: Workspace) -> None:
    def own(scope: str) -> set[str]:
        prepared.set(distill={"train": scope, "steps": 1})
        settings = params.load_settings()
        variant = settings.variant("none")
        trainer = distill.Trainer(load_dataset(settings.teacher)[0], variant, variant.runs()[0])
        theirs, ours = trainer.dataset.teacher.state_dict(), trainer.run().state_dict()
        assert trainer.fingerprint == teacher_fingerprint(trainer.dataset.teacher)
        return {
            name.split(".")[3] for name, t in ours.items() if ".h." in name and t.data_ptr() != theirs[name].data_ptr()
        }

    assert own("attention") == {"attn"}
    assert own("all") == {"attn", "mlp", "ln_1", "ln_2"}


def test_an_online_teacher_gives_the_cached_result(prepared: Workspace) -> None:
    prepared.run("distill none")
    cached = record("none")["kl_end"]
    prepared.set(teacher={"logits": "online"})
    prepared.run("cache-logits", "distill none")
    assert record("none")["kl_end"] == pytest.approx(cached, rel=1e-3)


def test_nan_stops_with_step_variant_and_last_checkpoint(prepared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    step = distill.Trainer.update

    def poisoned(self: distill.Trainer, phase: Phase, parts: list) -> tuple:
        loss, kl, norm = step(self, phase, parts)
        return (loss * float("nan") if phase.step == 7 else loss), kl, norm

    monkeypatch.setattr(distill.Trainer, "update", poisoned)
    with pytest.raises(RunError, match=r"none, seed 0: the loss is nan .* at step 8; last good checkpoint: step 6 \("):
        prepared.run("distill none")
    assert not Path("models/none/0").exists()


COMMAND = [sys.executable, "-m", "attnopt.cli", "distill", "none"]


def run_and_kill(env: dict, at_step: int) -> None:
    """Start the stage, and kill it with SIGKILL once a checkpoint of `at_step` or later lies there."""
    process = subprocess.Popen(COMMAND, env=env, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while time.time() < deadline:
        files = list(Path(".checkpoints").glob("*/state.pt"))
        if files and torch.load(files[0], weights_only=True)["step"] >= at_step:
            break
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_weights_and_metrics(prepared: Workspace) -> None:
    prepared.set(distill={"steps": 400, "checkpoint_every": 20, "log_every": 20, "valid_every": 100})
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    run_and_kill(env, at_step=40)
    assert not Path("models").exists()
    subprocess.run(COMMAND, env=env, check=True, stderr=subprocess.DEVNULL)
    resumed, history = load_file("models/none/0/weights.safetensors"), pd.read_csv("results/distill/none/0/history.csv")
    assert not list(Path(".checkpoints").glob("*/state.pt"))
    subprocess.run(COMMAND, env=env, check=True, stderr=subprocess.DEVNULL)
    straight = load_file("models/none/0/weights.safetensors")
    assert resumed.keys() == straight.keys()
    assert all(torch.equal(resumed[n], straight[n]) for n in straight)
    columns = ["step", "loss", "kl", "valid_kl", "lr", "grad_norm"]
    pd.testing.assert_frame_equal(history[columns], pd.read_csv("results/distill/none/0/history.csv")[columns])


def test_other_params_or_data_are_another_run(prepared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def keys(**changes: object) -> list[str]:
        settings = params.load_settings()
        variant = settings.variant("none").model_copy(update=changes)
        return [job.key for job in training_jobs(variant, settings.teacher)]

    (key,) = keys()
    assert keys() == [key]
    assert keys(seeds=[1, 0])[1] == key, "a further seed leaves the others as they are"
    assert keys(seeds=[1]) != [key]
    prepared.set(distill={"lr": 0.5})
    assert keys() != [key]
    prepared.set(distill={"lr": DistillParams().lr}, sample={"new_tokens": 9}, evaluate={"batch": 2})
    assert keys() == [key], "sections of other stages do not count"
    manifest = Path("data/corpus/manifest.json")
    manifest.write_text(manifest.read_text().replace('"name": "text"', '"name": "other"'))
    assert keys() != [key]
    manifest.write_text(manifest.read_text().replace('"name": "other"', '"name": "text"'))
    monkeypatch.setattr("attnopt.training.jobs.code_digest", lambda *modules: "other code")
    assert keys() != [key]


def test_a_student_that_holds_is_not_trained_again(prepared: Workspace) -> None:
    prepared.run("distill none")
    stamp = Path("models/none/0/student.json").stat().st_mtime_ns
    prepared.run("distill none")
    assert Path("models/none/0/student.json").stat().st_mtime_ns == stamp
    Path("results/distill/none/0/record.json").unlink()
    prepared.set(none={"seeds": [0, 1]})
    prepared.run("distill none")
    assert Path("models/none/0/student.json").stat().st_mtime_ns != stamp
    prepared.set(none={"seeds": [1]})
    stamp = Path("models/none/1/student.json").stat().st_mtime_ns
    prepared.run("distill none")
    assert [path.name for path in Path("models/none").iterdir()] == ["1"]
    assert Path("models/none/1/student.json").stat().st_mtime_ns == stamp
    settings = params.load_settings()
    assert len(training_jobs(settings.variant("none"), settings.teacher, again=True)) == 1


def test_two_trainers_do_not_share_a_checkpoint(workspace: Workspace) -> None:
    with Checkpoint("k").locked(), pytest.raises(UserError, match="another process trains this very run"), Checkpoint("k").locked():  # fmt: skip
        pass


def test_a_dataset_of_another_corpus_or_teacher_is_refused(prepared: Workspace) -> None:
    prepared.set(corpus={"max_tokens": 500})
    prepared.run("tokenize")
    (prepared.path / "text" / "test.txt").write_text("other text entirely\n" * 40)
    prepared.run("tokenize")
    with pytest.raises(UserError, match="data/teacher was made with another corpus"):
        load_dataset(params.load_settings().teacher)


@pytest.mark.slow
def test_students_are_kept_on_the_way(prepared: Workspace) -> None:
    prepared.set(transfer={"steps": 10}, distill={"steps": 10, "keep": [0.25, 0.75]})
    prepared.run("distill none", "evaluate none", "sample none")
    folder = Path("models/none/0")
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["15", "5"]
    kept = [
        load_file(path / "weights.safetensors") for path in (*(folder / "checkpoints" / s for s in ("5", "15")), folder)
    ]
    assert all(any(not torch.equal(a[n], b[n]) for n in a) for a, b in pairwise(kept))
    evaluated, written = (
        json.loads(Path(f"results/{s}/none/0/record.json").read_text()) for s in ("evaluate", "sample")
    )
    kls = [c["splits"]["test"]["kl_forward"] for c in evaluated["checkpoints"]]
    assert kls[0] > kls[1] > evaluated["splits"]["test"]["kl_forward"]
    assert [c["step"] for c in evaluated["checkpoints"]] == [c["step"] for c in written["checkpoints"]] == [5, 15]
    assert len(written["checkpoints"][0]["samples"]) == len(written["samples"])


def test_a_killed_run_keeps_the_same_students(prepared: Workspace) -> None:
    prepared.set(distill={"steps": 20, "keep": [0.3], "checkpoint_every": 5})
    prepared.run("distill none")
    kept = Path("models/none/0/checkpoints/6/weights.safetensors")
    whole = load_file(kept)
    settings = params.load_settings()
    loaded, _ = load_dataset(settings.teacher)
    variant = settings.variant("none")
    checkpoint = Checkpoint("killed")
    checkpoint.folder.mkdir(parents=True)
    with pytest.raises(InterruptedError):
        distill.Trainer(loaded, variant, variant.runs()[0], checkpoint, progress=_stop).run()
    trainer = distill.Trainer(loaded, variant, variant.runs()[0], checkpoint)
    trainer.run()
    assert {n: t.tolist() for n, t in trainer.kept[6].items()} == {n: t.tolist() for n, t in whole.items()}


OTHER_STOPS = {"transfer": 4, "align": 9, "lora": 21}


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(17, id="distill"),
        *(pytest.param(step, id=phase, marks=pytest.mark.slow) for phase, step in OTHER_STOPS.items()),
    ],
)
def test_a_run_stopped_in_any_phase_ends_as_if_it_had_not_been(prepared: Workspace, stop: int) -> None:
    """At 17 patience has looked three times in vain, and the checkpoint knows of two of them and of the best."""
    prepared.set(variants={"masks": "masks"}, masks={"candidates": ["last:1", "window:4"]})
    prepared.set(transfer={"steps": 6, "lr": 0.05}, align={"steps": 6}, lora={"steps": 6})
    prepared.set(distill={"steps": 8, "lr": 0.1, "warmup": 8, "patience": 3})
    prepared.set(distill={"checkpoint_every": 2, "log_every": 1, "valid_every": 1})
    settings = params.load_settings()
    loaded, _ = load_dataset(settings.teacher)
    variant = settings.variant("masks")

    def interrupt(step: int, *_: object) -> None:
        if step == stop:
            raise InterruptedError

    def trainer(checkpoint: Checkpoint | None = None, progress: distill.Progress = lambda *_: None) -> distill.Trainer:
        return distill.Trainer(loaded, variant, variant.runs()[0], checkpoint, progress=progress)

    checkpoint, straight = Checkpoint("stopped"), trainer()
    checkpoint.folder.mkdir(parents=True)
    straight.run()
    assert [row.steps for row in straight.log.phases] == [6, 6, 5, 6]
    with pytest.raises(InterruptedError):
        trainer(checkpoint, interrupt).run()
    resumed = trainer(checkpoint)
    resumed.run()
    ours, theirs = (changed_weights(t.student, loaded.teacher) for t in (resumed, straight))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    clocks = {"tokens_per_s", "wall_s", "cpu_s", "rss_mib"}
    ours, theirs = ([row.model_dump(exclude=clocks) for row in t.log.history] for t in (resumed, straight))
    assert ours == theirs
    assert resumed.log.coefficients == straight.log.coefficients
    ours, theirs = ([row.model_dump(exclude={"seconds"}) for row in t.log.phases] for t in (resumed, straight))
    assert ours == theirs


def _stop(step: int, *_: object) -> None:
    if step >= 10:
        raise InterruptedError


def test_the_trainer_leaves_its_callers_teacher_where_and_as_it_is(
    prepared: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it build anything before it is told to."""
    settings = params.load_settings()
    loaded, _ = load_dataset(settings.teacher)
    weights = {name: t.clone() for name, t in loaded.teacher.state_dict().items()}
    for name in ("to", "cpu", "cuda"):
        monkeypatch.setattr(loaded.teacher, name, None)
    variant = settings.variant("none")
    trainer = distill.Trainer(loaded, variant, variant.runs()[0])
    assert not hasattr(trainer, "student")
    trainer.run()
    assert all(torch.equal(t, weights[name]) for name, t in loaded.teacher.state_dict().items())
    assert not any(p.requires_grad for p in loaded.teacher.parameters())
    assert attachment_of(loaded.teacher) is None


def test_the_record_and_the_card_say_the_same_of_the_student(prepared: Workspace) -> None:
    prepared.set(none={"layers": [1], "weights": "random"})
    settings = params.load_settings()
    loaded, _ = load_dataset(settings.teacher)
    variant = settings.variant("none")
    trainer = distill.Trainer(loaded, variant, variant.runs()[0])
    trainer.run()
    made, card = trainer.record("k"), trainer.card("k", settings.teacher)
    for key in ("variant", "kind", "control", "seed", "key", "options", "layers", "start"):
        assert getattr(made, key) == getattr(card, key)
    assert (made.layers, made.start, made.key) == ([1], "random", "k")
    assert [row.phase for row in made.phases] == ["distill"]
    assert made.budget.steps == trainer.log.history[-1].step == 12


def test_a_mechanism_that_sees_the_future_is_refused_before_any_training(
    prepared: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared.set(variants={"ahead": "performer_bidirectional"}, ahead={"features": 8})
    monkeypatch.setattr("attnopt.mechanisms.performer_bidirectional.PerformerBidirectional.control", None)
    settings = params.load_settings()
    loaded, _ = load_dataset(settings.teacher)
    variant = settings.variant("ahead")
    trainer = distill.Trainer(loaded, variant, variant.runs()[0])
    with pytest.raises(UserError, match="it would be told what it has to predict"):
        trainer.prepare()
    assert not hasattr(trainer, "plan")
