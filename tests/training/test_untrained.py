"""Rivals that train nothing go through the same stages, and their records say that there was no training."""

from pathlib import Path

import pytest
import torch
from conftest import Workspace

import attnopt
from attnopt.records.distill import DistillRecord
from attnopt.student.attach import mechanisms_of

STILL = {"transfer": {"steps": 0}, "distill": {"steps": 0}}
RIVALS = {
    "keydiff": ("evict", {"score": "keydiff"}),
    "tova": ("evict", {"score": "tova", "tokens": 12, "window": 4, "every": 1}),
    "kv_int8": ("quantised", {"bits": 8, "block": 8}),
    "low_rank_4": ("low_rank", {"rank": 4}),
    "moba": ("moba", {"block": 8}),
    "top_8": ("topk", {"keep": 8}),
}


@pytest.fixture
def prepared(workspace: Workspace) -> Workspace:
    workspace.set(
        variants={name: kind for name, (kind, _) in RIVALS.items()},
        state={"share": 0.25, "length": 64},
        **{name: {**STILL, **options} for name, (_, options) in RIVALS.items()},
    )
    workspace.run("tokenize", "cache-logits", *(f"distill {name}" for name in RIVALS))
    return workspace


@pytest.mark.usefixtures("prepared")
def test_they_skip_the_phases_and_say_so_and_only_the_fit_moves_them() -> None:
    for name, (kind, options) in RIVALS.items():
        record = DistillRecord.read(f"results/distill/{name}/0/record.json")
        assert (record.phases, record.budget.steps, record.budget.tokens, record.flops) == ([], 0, 0, 0), name
        assert record.kl_end == record.kl_start
        assert (record.kl_start < record.kl_start_unfitted) == (kind == "low_rank"), name
        assert record.options.items() >= options.items()
        assert record.state_budget == (0.25 if kind == "evict" else None), name
        assert record.state_share <= 0.25 or kind != "evict", name


@pytest.mark.usefixtures("prepared")
def test_a_student_read_again_is_the_one_that_was_fitted() -> None:
    for name, (kind, _) in RIVALS.items():
        model = attnopt.load(Path(f"models/{name}/0"))
        found = mechanisms_of(model)
        assert {m.kind for m in found} == {kind}
        out = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=20, min_new_tokens=20, do_sample=False)
        assert out.shape == (1, 23)
        if kind == "low_rank":
            assert found[0].mean.abs().sum() > 0
