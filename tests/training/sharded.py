"""What each of several processes runs in the test of sharded training; OUT/NAME.pt holds what the first one found.

torchrun ... tests/training/sharded.py OUT: in the small world that is the working directory.
"""

import os
import sys
from pathlib import Path

import torch

from attnopt import settings as params
from attnopt.core.checkpoint import Checkpoint
from attnopt.core.distributed import Alone, join_group
from attnopt.student.files import changed_weights
from attnopt.targets.dataset import load_dataset
from attnopt.training.trainer import Trainer

COLUMNS = ("phase", "step", "loss", "kl", "valid_kl", "grad_norm")


class Stopped(Exception):
    """Ends a run in its midst, as a kill does."""


def run(group: Alone, checkpoint: str | None = None, stop: int | None = None) -> dict | None:
    """A run of the first variant: its curve, its coefficients and its student. None where it was stopped after
    a step."""
    settings = params.load_settings()
    variant = settings.variant(next(iter(settings.variants)))
    kept = Checkpoint(checkpoint) if checkpoint else None
    if kept:
        kept.folder.mkdir(parents=True, exist_ok=True)

    def show(step: int, *_: object) -> None:
        if step == stop:
            raise Stopped

    dataset, _ = load_dataset(settings.teacher)
    trainer = Trainer(dataset, variant, variant.runs()[0], kept, group, show)
    try:
        trainer.run()
    except Stopped:
        return None
    held = [t for model in (trainer.student, dataset.teacher) for t in model.state_dict().values()]
    return {
        "curve": [[getattr(row, name) for name in COLUMNS] for row in trainer.log.history],
        "coefficients": [row.model_dump() for row in trainer.log.coefficients],
        "weights": changed_weights(trainer.student, dataset.teacher),
        "kept": trainer.kept,
        "held": sum((t.to_local() if hasattr(t, "to_local") else t).numel() for t in held),
    }


def main(out: Path) -> None:
    """Straight; stopped and resumed; and resumed where one process and another number had stopped."""
    group = join_group(torch.device("cpu"), sharded=True)
    run(group, f"stopped{group.size}", stop=9)
    found = {"straight": run(group), "resumed": run(group, f"stopped{group.size}")}
    for name in os.environ["GO_ON"].split():
        found[name] = run(group, name)
    if group.main:
        torch.save(found, out / f"{group.size}.pt")
    group.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
