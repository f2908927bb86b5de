"""Training for length: shifted blocks stand at the same positions for all who read them, and the last steps are long."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Workspace
from torch import Tensor

from attnopt import settings as params
from attnopt.core.checkpoint import Checkpoint
from attnopt.core.errors import UserError
from attnopt.student.build import build_student
from attnopt.student.files import changed_weights
from attnopt.targets.dataset import Dataset, load_dataset
from attnopt.teacher.head import hidden_states
from attnopt.training import trainer as training
from attnopt.training.params import PhaseName
from attnopt.training.phases import PHASES
from training.world import record


def dataset_of() -> Dataset:
    return load_dataset(params.load_settings().teacher)[0]


def make_trainer(dataset: Dataset, name: str = "masks", **given: Any) -> training.Trainer:
    variant = params.load_settings().variant(name)
    return training.Trainer(dataset, variant, variant.runs()[0], **given)


def ids_of(dataset: Dataset, rows: list[int]) -> Tensor:
    return torch.from_numpy(dataset.blocks["train"][rows].astype(np.int64))


@torch.no_grad()
@pytest.mark.parametrize("logits", ["hidden", "online", "dense"])
def test_the_teacher_is_kept_at_the_positions_that_students_get(workspace: Workspace, logits: str) -> None:
    workspace.set(teacher={"shift": 0.5, "logits": logits})
    workspace.run("tokenize", "cache-logits")
    dataset, rows = dataset_of(), [3, 0, 7, 250]
    ids, positions = ids_of(dataset, rows), dataset.positions("train", rows, torch.device("cpu"))
    expected = dataset.head(hidden_states(dataset.teacher, ids, positions)[:, :-1].flatten(0, 1)).log_softmax(-1)
    found = dataset.targets("train", rows, ids)[:].logits.log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02, check_dtype=False)
    elsewhere = dataset.head(hidden_states(dataset.teacher, ids)[:, :-1].flatten(0, 1)).log_softmax(-1)
    assert (found - elsewhere).abs().max() > 0.2
    assert dataset.positions("valid", [0, 1], torch.device("cpu")) is None


@torch.no_grad()
def test_without_a_shift_nothing_is_passed_and_the_cache_is_that_of_plain_calls(workspace: Workspace) -> None:
    workspace.run("tokenize", "cache-logits")
    dataset, rows = dataset_of(), list(range(16))
    assert dataset.positions("train", rows, torch.device("cpu")) is None
    ids = ids_of(dataset, rows)
    plain = dataset.teacher.transformer(input_ids=ids, use_cache=False).last_hidden_state
    assert torch.equal(dataset.hidden("train", rows, ids), plain.half().float())


def test_a_cache_of_another_shift_is_refused(workspace: Workspace) -> None:
    workspace.run("tokenize", "cache-logits")
    workspace.set(teacher={"shift": 0.5})
    with pytest.raises(UserError, match=r"data/teacher was made with another teacher.shift: run `dvc repro cache-log"):
        dataset_of()
    workspace.set(corpus={"block": 64})
    workspace.run("tokenize")
    with pytest.raises(UserError, match=r"teacher.shift 0.5: blocks of 64 leave no room in 64 positions"):
        workspace.run("cache-logits")


@torch.no_grad()
@pytest.mark.parametrize("name", ["transfer", "align", "distill"])
def test_a_student_with_softmax_has_nothing_to_learn_where_it_sees_the_same_positions(
    workspace: Workspace, name: PhaseName
) -> None:
    workspace.set(teacher={"shift": 1.0})
    workspace.run("tokenize", "cache-logits")
    dataset, chosen = dataset_of(), params.load_settings().variant("softmax")
    rows = [0, 1]
    ids, positions = ids_of(dataset, rows), dataset.positions("train", rows, torch.device("cpu"))
    built = build_student(dataset.teacher, chosen.swap, 0)
    objective = PHASES[name](built, dataset, chosen, chosen.runs()[0], torch.float32)
    targets = dataset.targets("train", rows, ids)
    loss, kl = objective(ids, targets, positions)
    assert (loss if kl is None else kl) < 1e-5
    if name == "distill":
        assert objective(ids, targets, None)[1] > 1e-2


def test_mechanisms_are_fitted_at_the_same_positions(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.set(teacher={"shift": 0.5}, variants={"masks": "masks"}, masks={}, distill={"steps": 1})
    workspace.run("tokenize", "cache-logits")
    seen, dataset = [], dataset_of()
    monkeypatch.setattr(training, "fit_mechanisms", lambda *given: seen.append(given))
    make_trainer(dataset).run()
    ((_, _, blocks, positions),) = seen
    assert np.array_equal(blocks, dataset.blocks["train"][:4])
    assert torch.equal(positions, dataset.positions("train", slice(4), torch.device("cpu")))
    assert positions.max() > 31


@pytest.fixture
def long(workspace: Workspace) -> Workspace:
    """Of 4 + 8 steps the last 6 take 2 blocks of 64 in place of 4 of 32."""
    workspace.set(variants={"masks": "masks"}, masks={"candidates": ["last:1", "window:4"]}, corpus={"long_block": 64})
    workspace.set(transfer={"steps": 4, "lr": 0.05}, distill={"steps": 8, "lr": 0.05, "long_share": 0.5})
    workspace.set(distill={"checkpoint_every": 2, "log_every": 1, "valid_every": 1}, teacher={"shift": 0.5})
    workspace.run("tokenize", "cache-logits")
    return workspace


def test_the_last_steps_take_longer_blocks_for_as_many_tokens(long: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, seen = dataset_of(), []
    trainer = make_trainer(dataset)
    update = trainer.update
    monkeypatch.setattr(trainer, "update", lambda phase, parts: seen.append(parts[0][0]) or update(phase, parts))
    trainer.run()
    assert [tuple(ids.shape) for ids in seen] == [(4, 32)] * 6 + [(2, 64)] * 6
    known = {tuple(block) for block in dataset.blocks["long"].tolist()}
    assert {tuple(block) for ids in seen[6:] for block in ids.tolist()} <= known
    budget = trainer.record("").budget
    assert (budget.steps, budget.long_steps, budget.long_block, budget.block) == (12, 6, 64, 32)
    assert budget.tokens == 6 * 4 * 31 + 6 * 2 * 63 == trainer.log.history[-1].tokens
    assert [row.tokens for row in trainer.log.phases] == [4 * 4 * 31, 2 * 4 * 31 + 6 * 2 * 63]
    per_step = trainer.log.flops
    assert trainer.log.phases[1].flops == 2 * per_step["distill", 32] + 6 * per_step["distill", 64]


@pytest.mark.parametrize("stop", [3, 9])
def test_a_run_stopped_before_or_within_the_long_steps_ends_as_if_it_had_not_been(long: Workspace, stop: int) -> None:
    dataset = dataset_of()

    def interrupt(step: int, *_: object) -> None:
        if step == stop:
            raise InterruptedError

    checkpoint, straight = Checkpoint("stopped"), make_trainer(dataset)
    checkpoint.folder.mkdir(parents=True)
    straight.run()
    with pytest.raises(InterruptedError):
        make_trainer(dataset, checkpoint=checkpoint, progress=interrupt).run()
    resumed = make_trainer(dataset, checkpoint=checkpoint)
    resumed.run()
    ours, theirs = (changed_weights(t.student, dataset.teacher) for t in (resumed, straight))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    clocks = {"tokens_per_s", "wall_s", "cpu_s", "rss_mib"}
    ours, theirs = ([row.model_dump(exclude=clocks) for row in t.log.history] for t in (resumed, straight))
    assert ours == theirs
    ours, theirs = ([row.model_dump(exclude={"seconds"}) for row in t.log.phases] for t in (resumed, straight))
    assert ours == theirs


def test_the_stage_says_how_many_steps_were_long(long: Workspace) -> None:
    long.run("distill masks")
    budget = record("masks")["budget"]
    assert (budget["long_steps"], budget["long_block"], budget["long_share"]) == (6, 64, 0.5)
    assert [row["long_steps"] for row in record("masks")["phases"]] == [0, 6]


def test_long_blocks_that_cannot_be_shared_or_are_not_there_are_refused(long: Workspace) -> None:
    long.set(distill={"accumulate": 4})
    with pytest.raises(UserError, match=r"4 blocks of 32 are 2 of 64, which do not divide into 1 processes x 4 parts"):
        long.run("distill masks")
    long.set(corpus={"long_block": None}, distill={"long_share": 0})
    long.run("tokenize")
    long.set(corpus={"long_block": 64}, distill={"long_share": 0.5})
    with pytest.raises(UserError, match=r"distill.long_share needs corpus.long_block: set it and run `dvc repro cache"):
        long.run("distill masks")
    assert not Path("models").exists()
