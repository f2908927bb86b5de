"""Two processes and parts of a batch: the same steps as one process with the whole batch."""

import os
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT, Workspace

from attnopt import settings as params
from attnopt.core.errors import UserError

COLUMNS = ["step", "loss", "kl", "valid_kl", "grad_norm"]


@pytest.fixture
def prepared(workspace: Workspace) -> Workspace:
    workspace.set(variants={"based": "based"}, based={"window": 4}, transfer={"steps": 4, "warmup": 1})
    workspace.run("tokenize", "cache-logits")
    return workspace


def curve(command: list[str], **settings: str) -> pd.DataFrame:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | settings
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return pd.read_csv("results/distill/based/0/history.csv")[COLUMNS]


ALONE = [sys.executable, "-m", "attnopt.cli", "distill", "based"]


@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one(prepared: Workspace) -> None:
    alone = curve(ALONE)
    prepared.set(distill={"processes": 2})
    together = curve(ALONE)
    pd.testing.assert_frame_equal(alone, together, rtol=2e-4, atol=2e-5)
    prepared.set(distill={"sharding": "full"})
    pd.testing.assert_frame_equal(alone, curve(ALONE), rtol=2e-4, atol=2e-5)
    prepared.set(distill={"processes": 1, "sharding": "none"})
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
    ]
    launched = curve(
        [*launcher, "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "attnopt.cli", "distill", "based"]
    )
    pd.testing.assert_frame_equal(alone, launched, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_a_batch_in_parts_follows_the_curve_of_the_whole(prepared: Workspace) -> None:
    whole = curve(ALONE)
    prepared.set(distill={"accumulate": 4})
    pd.testing.assert_frame_equal(whole, curve(ALONE), rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_two_processes_share_shifted_and_longer_blocks_and_one_copy_of_the_layers(prepared: Workspace) -> None:
    prepared.set(corpus={"long_block": 64}, teacher={"shift": 0.5}, distill={"long_share": 0.25})
    prepared.set(transfer={"layers": "in_turn"})
    prepared.run("tokenize", "cache-logits")
    alone = curve(ALONE)
    prepared.set(distill={"processes": 2})
    pd.testing.assert_frame_equal(alone, curve(ALONE), rtol=2e-4, atol=2e-5)


def test_a_batch_that_does_not_divide_is_refused(prepared: Workspace) -> None:
    prepared.set(distill={"processes": 3})
    with pytest.raises(UserError, match="batch: 4 blocks do not divide into 3 processes x 1 parts"):
        params.load_settings()
