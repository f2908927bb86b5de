"""What the tests of training share: a phase's objective on the tiny teacher, and a run's record."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attnopt import settings as params
from attnopt.core.files import read_json
from attnopt.student import build as student
from attnopt.student.attach import mechanisms_of
from attnopt.targets.dataset import load_dataset
from attnopt.training.log import coefficient_rows
from attnopt.training.params import PhaseName
from attnopt.training.phases import PHASES, Objective
from attnopt.training.schedule import make_optimizer
from attnopt.training.sharding import load_fitted


def record(variant: str, seed: int = 0) -> dict:
    return read_json(Path(f"results/distill/{variant}/{seed}/record.json"))


def make_objective(name: PhaseName, variant: str = "hedgehog", run: int = 0) -> tuple[Objective, torch.Tensor]:
    """A phase's objective on a new student of a variant's run, and two blocks (2, T) to learn from."""
    settings = params.load_settings()
    loaded, _ = load_dataset(settings.teacher)
    chosen = settings.variant(variant)
    built = student.build_student(loaded.teacher, chosen.swap, 0)
    ids = torch.from_numpy(loaded.blocks["train"][:2].astype("int64"))
    return PHASES[name](built, loaded, chosen, chosen.runs()[run], torch.float32), ids


def losses(kind: str, shard: Callable[[Any, Any], list[Any]] | None = None) -> list[float]:
    """Of three steps of transfer, align and distill each, fitted to the tiny teacher.

    Args:
        shard: shards student and teacher, and gives whole mechanisms to be fitted.
    """
    objective, ids = make_objective("distill", kind)
    learner, dataset, variant, seeds = objective.student, objective.dataset, objective.variant, objective.seeds
    mechanisms = shard(learner, dataset.teacher) if shard else mechanisms_of(learner)
    student.fit_mechanisms(mechanisms, dataset.teacher, dataset.blocks["train"][:4])
    if shard:
        load_fitted(learner, mechanisms)
    found = []
    for name in ("transfer", "align", "distill"):
        objective = PHASES[name](learner, dataset, variant, seeds, torch.float32)
        trainable = objective.begin()
        if not trainable.parameters():
            continue
        optimizer = make_optimizer(trainable, objective.params, 0.0)
        for _ in range(3):
            loss = objective(ids, objective.targets("train", np.arange(2), ids))[0]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(float(loss.detach()))
    coefficient_rows(mechanisms_of(learner), 0)
    return found
