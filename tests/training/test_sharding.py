"""Student and teacher sharded over 2 and 4 processes: the run of one process, and checkpoints for any number."""

import gc
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, Workspace
from transformers import GPT2Config, GPT2LMHeadModel

from attnopt import settings as params
from attnopt.core.distributed import Alone, Sharded
from attnopt.core.errors import UserError
from attnopt.mechanisms import load_mechanism, mechanism_names
from attnopt.student.build import build_student
from attnopt.student.swap import Swap
from attnopt.targets.dataset import load_dataset
from attnopt.teacher.model import load_teacher, teacher_fingerprint
from attnopt.teacher.params import TeacherParams
from attnopt.training.batches import Batches
from attnopt.training.jobs import TrainingJob, training_jobs
from attnopt.training.resume import load_shared_run
from attnopt.training.sharding import refuse_unshardable, shard_models
from training.sharded import run
from training.world import losses


def launch(out: Path) -> list[dict]:
    """What `training/sharded.py` found in 2 and in 4 processes."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests/training/sharded.py"), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(out / f"{processes}.pt") for processes in (2, 4)]


def same(one: dict, other: dict) -> bool:
    weights = one["weights"].keys() == other["weights"].keys()
    weights = weights and all(torch.equal(t, other["weights"][name]) for name, t in one["weights"].items())
    return weights and one["curve"] == other["curve"] and one["coefficients"] == other["coefficients"]


def assert_close(one: dict, other: dict) -> None:
    """To float tolerance. Single weights are not compared: those without a gradient but rounding, as the biases of keys
    under a softmax, move by whole steps of Adam."""
    for ours, theirs in zip(one["curve"], other["curve"], strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2:] == [None if x is None else pytest.approx(x, rel=2e-4, abs=2e-5) for x in theirs[2:]]
    students = [[x["weights"], *x["kept"].values()] for x in (one, other)]
    for found, expected in zip(*students, strict=True):
        assert found.keys() == expected.keys()
        a, b = (torch.cat([t.flatten() for t in x.values()]) for x in (found, expected))
        assert (a - b).norm() < 1e-3 * b.norm()


@pytest.fixture
def masked(workspace: Workspace) -> Workspace:
    """The mechanism's own parameters are read by a penalty and for the log, outside of its forward pass."""
    workspace.set(variants={"masks": "masks"}, masks={"candidates": ["last:1", "window:4"], "l1": 0.01})
    workspace.set(
        transfer={"steps": 4, "warmup": 1, "layers": "in_turn"}, align={"steps": 4}, teacher={"logits": "online"}
    )
    workspace.set(distill={"steps": 6, "checkpoint_every": 2, "log_every": 1, "valid_every": 3, "keep": [0.5]})
    workspace.set(distill={"accumulate": 1, "patience": 9})
    workspace.run("tokenize", "cache-logits")
    return workspace


@pytest.mark.slow
def test_sharded_over_2_and_4_processes_it_is_the_run_of_one(masked: Workspace, tmp_path: Path) -> None:
    group = Alone(torch.device("cpu"))
    straight = run(group)
    assert straight is not None
    for name in ("for2", "for4"):
        assert run(group, name, stop=9) is None
    two, four = launch(tmp_path)
    for size, most, found in ((2, 0.75, two), (4, 0.6, four)):
        assert same(found[f"stopped{size}"], found["straight"])
        for one in found.values():
            assert_close(one, straight)
            assert one["held"] < most * straight["held"]


@pytest.fixture
def group_of_one() -> Iterator[Sharded]:
    """Its parts are wholes, and are DTensors: what reads a parameter outside of a forward pass fails on them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=0, world_size=1)
    group = Sharded.__new__(Sharded)
    Alone.__init__(group, torch.device("cpu"))
    yield group
    dist.destroy_process_group()


@pytest.mark.slow
def test_every_mechanism_can_be_sharded(workspace: Workspace, group_of_one: Sharded) -> None:
    kinds = [kind for kind in mechanism_names() if load_mechanism(kind).control is None]
    workspace.set(variants={kind: kind for kind in kinds}, teacher={"logits": "online"}, **{k: {} for k in kinds})
    workspace.run("tokenize", "cache-logits")
    for kind in kinds:
        alone = losses(kind)
        sharded = losses(kind, lambda student, teacher: shard_models(student, teacher, group_of_one))
        assert sharded == pytest.approx(alone, rel=1e-4), kind


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"lora": {"steps": 2}}, r"none.lora.steps: with distill.sharding full adapters are not sharded; allowed: 0"),
        ({"transfer": {"steps": 2, "loss": "both"}}, r"none.transfer.loss: .* whole copy .*; allowed: outputs"),
        ({"distill": {"train": "all"}}, r"none.distill.train: .* embeddings .*; allowed: attention, mechanism"),
    ],
)
def test_what_cannot_be_sharded_is_refused(workspace: Workspace, section: dict, message: str) -> None:
    workspace.set(**section)
    with pytest.raises(UserError, match=message):
        refuse_unshardable(params.load_settings().variant("none"))


def test_a_run_goes_on_with_another_number_of_processes(workspace: Workspace) -> None:
    """Its students are others, by rounding, and so is their key; what is half done is not lost."""
    workspace.run("tokenize", "cache-logits")

    def job(**distill: object) -> TrainingJob:
        workspace.set(distill=distill)
        settings = params.load_settings()
        return training_jobs(settings.variant("none"), settings.teacher)[0]

    jobs = [job(), job(processes=2), job(sharding="full"), job(recompute=True)]
    assert len({one.key for one in jobs}) == 4
    assert len({one.run for one in jobs}) == 1
    assert job(lr=0.5).run != jobs[0].run


@pytest.mark.parametrize("weights", ["teacher", "random"])
def test_before_it_is_sharded_a_student_is_on_its_teachers_tensors(tiny: Path, weights: str) -> None:
    teacher, _ = load_teacher(TeacherParams(source="path", path=str(tiny / "teacher")))
    before = teacher_fingerprint(teacher)
    ours = build_student(teacher, Swap("hedgehog", weights=weights), 0, teacher.parameters()).state_dict()
    theirs = teacher.state_dict()
    own = {name for name, t in ours.items() if name not in theirs or t.data_ptr() != theirs[name].data_ptr()}
    drawn = {name.split(".")[-2] for name in own if ".mechanism." not in name}
    assert drawn == (set() if weights == "teacher" else {"c_attn", "c_proj"})
    assert teacher_fingerprint(teacher) == before
    same = build_student(teacher, Swap("hedgehog", weights=weights), 0).state_dict()
    assert all(torch.equal(t, same[name]) for name, t in ours.items())


def anonymous_mib() -> float:
    """Of this process: memory that it shares with no other and that no file holds."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Anonymous:"))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's account of memory")
def test_a_teacher_is_loaded_once_for_all_processes_of_a_machine(tiny: Path, tmp_path: Path) -> None:
    """Its tensors are pages of its file, which the machine holds once."""
    config = GPT2Config(vocab_size=300, n_positions=64, n_embd=512, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    for file in (tiny / "teacher").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    gc.collect()
    before = anonymous_mib()
    teacher, _ = load_teacher(TeacherParams(source="path", path=str(tmp_path), dtype="float32"))
    student = build_student(teacher, Swap("softmax"), 0, teacher.parameters())
    held = sum(t.nbytes for t in teacher.parameters()) / 2**20
    assert held > 45
    assert anonymous_mib() - before < 0.2 * held
    del student


def test_processes_that_find_other_checkpoints_are_refused(workspace: Workspace) -> None:
    """As on machines that do not share the folder."""
    group = Alone(torch.device("cpu"))
    group.agree = lambda value: False  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"\.checkpoints: not all processes find the same checkpoint there"):
        load_shared_run(None, group)


def test_a_batch_that_the_launched_processes_do_not_share_evenly_is_refused(workspace: Workspace) -> None:
    group = Alone(torch.device("cpu"))
    group.size = 3
    workspace.run("tokenize", "cache-logits")
    settings = params.load_settings()
    with pytest.raises(UserError, match=r"distill.batch: 4 blocks do not divide into 3 processes x 1 parts"):
        Batches(load_dataset(settings.teacher)[0], settings.distill, 0, group)
