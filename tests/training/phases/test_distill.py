"""Distillation on logits without a divergence: the teacher itself, fine-tuned."""

import json
from pathlib import Path

import pytest
from conftest import Workspace


@pytest.mark.slow
def test_cross_entropy_alone_fine_tunes_the_teacher(phased: Workspace) -> None:
    phased.set(softmax={"distill": {"steps": 40, "kl": "none", "ce_weight": 1.0, "train": "all", "lr": 0.003}})
    phased.run("distill softmax", "evaluate softmax")
    splits = json.loads(Path("results/evaluate/softmax/0/record.json").read_text())["splits"]
    assert splits["valid"]["ce"] < splits["valid"]["teacher_ce"]
    assert splits["valid"]["kl_forward"] > 0.001
