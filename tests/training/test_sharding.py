"""Student and teacher sharded over 2 and 4 processes: the run of one process, and checkpoints for any number."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Workspace
from training.sharded import run

from attnopt import settings as params
from attnopt.core.checkpoint import checkpoint_root
from attnopt.core.distributed import Alone
from attnopt.core.errors import UserError
from attnopt.training.jobs import training_jobs
from attnopt.training.sharding import refuse_unshardable


def launch(processes: int, out: Path, go_on: str) -> dict:
    """What `training/sharded.py` found in several processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "GO_ON": go_on}
    script = str(ROOT / "tests/training/sharded.py")
    done = subprocess.run(
        [*torchrun, script, str(out)], env=os.environ | environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(out / f"{processes}.pt")


def same(one: dict, other: dict) -> bool:
    weights = one["weights"].keys() == other["weights"].keys()
    weights = weights and all(torch.equal(t, other["weights"][name]) for name, t in one["weights"].items())
    return weights and one["curve"] == other["curve"] and one["coefficients"] == other["coefficients"]


def assert_close(one: dict, other: dict) -> None:
    for ours, theirs in zip(one["curve"], other["curve"], strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2:] == [None if x is None else pytest.approx(x, rel=2e-4, abs=2e-5) for x in theirs[2:]]
    for key in ("weights", "kept"):
        torch.testing.assert_close(one[key], other[key], rtol=1e-2, atol=1e-4)


@pytest.fixture
def masked(workspace: Workspace) -> Workspace:
    """The mechanism's own parameters are read by a penalty and for the log, outside of its forward pass."""
    workspace.set(variants={"masks": "masks"}, masks={"candidates": ["last:1", "window:4"], "l1": 0.01})
    workspace.set(transfer={"steps": 4, "warmup": 1}, align={"steps": 4}, teacher={"logits": "online"})
    workspace.set(distill={"steps": 6, "checkpoint_every": 2, "log_every": 1, "valid_every": 3, "keep": [0.5]})
    workspace.set(distill={"accumulate": 1, "patience": 9})
    workspace.run("tokenize", "cache-logits")
    return workspace


@pytest.mark.slow
def test_sharded_over_2_and_4_processes_it_is_the_run_of_one(masked: Workspace, tmp_path: Path) -> None:
    group = Alone(torch.device("cpu"))
    straight = run(group)
    assert straight is not None
    for name in ("stopped1", "for2", "for4"):
        assert run(group, name, stop=9) is None
    two = launch(2, tmp_path, "for2")
    shutil.copytree(checkpoint_root() / "stopped2", checkpoint_root() / "from2") 
    four = launch(4, tmp_path, "for4")
    for found in (two, four):
        assert same(found["resumed"], found["straight"])
        for one in found.values():
            assert_close(one, straight)
