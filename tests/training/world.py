"""What the tests of training share: a phase's objective on the tiny teacher, and a run's record."""

from pathlib import Path

import torch

from attnopt import settings as params
from attnopt.core.files import read_json
from attnopt.student import build as student
from attnopt.targets.dataset import load_dataset
from attnopt.training.params import PhaseName
from attnopt.training.phases import PHASES, Objective


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
