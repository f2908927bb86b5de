"""The stage distill: a variant's students trained, one after the other, each written with its record."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from attnopt.core.checkpoint import Checkpoint, checkpoint_key
from attnopt.core.device import resolve_device, resolve_precision
from attnopt.core.distributed import join_group, launch_processes, launched_processes
from attnopt.core.files import written_aside
from attnopt.core.paths import CHECKPOINTS
from attnopt.core.progress import progress_bar
from attnopt.records.distill import CoefficientRow, HistoryRow, write_rows
from attnopt.student.files import write_student
from attnopt.student.library import LibraryStudent, read_library
from attnopt.targets.dataset import load_dataset
from attnopt.teacher.params import TeacherParams
from attnopt.training.jobs import TrainingJob
from attnopt.training.trainer import Trainer


def train_students(jobs: Sequence[TrainingJob], teacher: TeacherParams) -> None:
    """Train and write the students of one variant; in the processes that it asks for.

    A job's checkpoint is removed when all are written, so that a run that is stopped goes on where it stood.
    """
    variant = jobs[0].variant
    if variant.distill.processes > 1 and launched_processes() == 1:
        launch_processes(variant.distill.processes, ["mix" if variant.is_mix else "distill", variant.name, "--again"])
        return
    dataset, _ = load_dataset(teacher)
    group = join_group(resolve_device(variant.distill.device), variant.distill.sharding == "full")
    where = (group.device.type, resolve_precision(variant.distill.precision, group.device))
    done = []
    for i, job in enumerate(jobs):
        checkpoint = Checkpoint(checkpoint_key(job.run, *where))
        if not group.shards:
            dataset.teacher.to(group.device)
        elif i:
            dataset, _ = load_dataset(teacher)  # the last run sharded it
        with progress_bar(name=f"{variant.name}/{job.seeds.run}", unit="step", total=0) as progress:
            blocks = _blocks(job, dataset.teacher)
            trainer = Trainer(dataset, variant, job.seeds, checkpoint, group, _shower(progress), blocks)
            with checkpoint.locked() if group.main else nullcontext():
                student = trainer.run()
                if group.main:
                    _write(job, trainer, student, teacher)
        group.wait()
        done.append(checkpoint)
    for checkpoint in done if group.main else ():
        checkpoint.remove()


def _blocks(job: TrainingJob, teacher: Any) -> dict[int, LibraryStudent] | None:
    """The library's students that a mix takes its layers from, each read once."""
    if not job.variant.is_mix:
        return None
    read = {folder: read_library(folder, teacher) for folder in set(job.blocks.values())}
    return {layer: read[folder] for layer, folder in job.blocks.items()}


def _shower(progress: Any) -> Callable[[int, int, HistoryRow], None]:
    def show(step: int, steps: int, row: HistoryRow) -> None:
        progress.total = steps
        shown = {row.phase: f"{row.loss:.3f}", "tok/s": f"{row.tokens_per_s:.0f}", "MiB": f"{row.rss_mib:.0f}"}
        progress.set_postfix(shown, refresh=False)
        progress.update(step - progress.n)

    return show


def _write(job: TrainingJob, trainer: Trainer, student: Any, teacher: TeacherParams) -> None:
    card = trainer.card(job.key, teacher)
    with written_aside(job.student) as aside:
        write_student(aside, trainer.weights, card)
        for step, weights in trainer.kept.items():
            write_student(aside / CHECKPOINTS / str(step), weights, card.model_copy(update={"step": step}))
    if job.library is not None and trainer.transferred is not None:
        with written_aside(job.library) as aside:
            write_student(aside, trainer.transferred, card)
    with written_aside(job.out) as aside:
        aside.mkdir()
        write_rows(aside / "history.csv", trainer.log.history, HistoryRow)
        if trainer.log.coefficients:
            write_rows(aside / "coefficients.csv", trainer.log.coefficients, CoefficientRow)
        trainer.record(job.key).write(aside / "record.json")
