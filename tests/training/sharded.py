"""What each of several processes runs in the test of sharded training; OUT/SIZE.pt holds what the first one found.

sharded.py OUT, in the small world that is the working directory. The processes are forked from one that has all
imported, in place of torchrun's, which take seconds to begin.
"""

import os
import shutil
import socket
import sys
from multiprocessing import get_context
from pathlib import Path

import torch

from attnopt import settings as params
from attnopt.core.checkpoint import Checkpoint
from attnopt.core.distributed import Alone, join_group, whole
from attnopt.targets.dataset import load_dataset
from attnopt.teacher.model import teacher_fingerprint
from attnopt.training.trainer import Trainer

COLUMNS = ("phase", "step", "loss", "kl", "valid_kl", "grad_norm")


class Stopped(Exception):
    """Ends a run in its midst, as a kill does."""


def run(group: Alone, checkpoint: str | None = None, stop: int | None = None) -> dict | None:
    """A run of the variant, four processes recomputing: its curve, its coefficients and its student. None where it was stopped after
    a step."""
    settings = params.load_settings()
    variant = settings.variant("masks")
    recompute = variant.distill.model_copy(update={"recompute": group.size == 4})
    variant = variant.model_copy(update={"distill": recompute})
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
    unchanged = load_dataset(settings.teacher)[0].teacher
    for name, tensor in dataset.teacher.state_dict().items():
        assert torch.equal(whole(tensor), unchanged.state_dict()[name])
    assert trainer.record("").processes == group.size
    assert trainer.card("", settings.teacher).fingerprint == teacher_fingerprint(unchanged)
    held = [t for model in (trainer.student, dataset.teacher) for t in model.state_dict().values()]
    return {
        "curve": [[getattr(row, name) for name in COLUMNS] for row in trainer.log.history],
        "coefficients": [row.model_dump() for row in trainer.log.coefficients],
        "weights": trainer.weights,
        "kept": trainer.kept,
        "held": sum((t.to_local() if hasattr(t, "to_local") else t).numel() for t in held),
    }


def straight_and_resumed(out: Path, others: list[str]) -> None:
    """Straight; stopped and resumed; and what another number of processes had stopped, resumed."""
    group = join_group(torch.device("cpu"), sharded=True)
    own = f"stopped{group.size}"
    run(group, own, stop=9)
    group.wait()
    if group.main:
        shutil.copytree(Checkpoint(own).folder, Checkpoint(f"of{group.size}").folder)
    found = {"straight": run(group)} | {name: run(group, name) for name in (own, *others)}
    if group.main:
        torch.save(found, out / f"{group.size}.pt")
    group.wait()


def fork(size: int, out: Path, others: list[str]) -> None:
    """`straight_and_resumed` in so many processes, as torchrun sets them up."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        where = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(size)}
    processes = []
    for rank in range(size):
        os.environ |= where | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(get_context("fork").Process(target=straight_and_resumed, args=(out, others)))
        processes[-1].start()
    for process in processes:
        process.join()
    assert not any(process.exitcode for process in processes)


if __name__ == "__main__":
    fork(2, Path(sys.argv[1]), ["for2"])
    fork(4, Path(sys.argv[1]), ["for4", "of2"])
