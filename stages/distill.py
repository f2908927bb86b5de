"""models/NAME and results/distill/NAME: one variant distilled, with every seed."""

from contextlib import nullcontext
from typing import Any

from attnopt import settings as params
from attnopt.core import distributed as processes
from attnopt.core.checkpoint import Checkpoint, code_digest, key_of
from attnopt.core.device import resolve_device, resolve_precision
from attnopt.core.files import read_json, written_aside
from attnopt.core.paths import CHECKPOINTS, CORPUS, MODELS, RESULTS, TEACHER
from attnopt.core.progress import progress_bar
from attnopt.corpus import blocks as corpus
from attnopt.records.distill import CoefficientRow, HistoryRow, write_rows
from attnopt.student import files as delta
from attnopt.targets.dataset import load_dataset
from attnopt.training.trainer import Trainer


def run(name: str) -> None:
    settings = params.load_settings()
    variant = settings.variant(name)
    if variant.distill.processes > 1 and processes.launched_processes() == 1:
        processes.launch_processes(variant.distill.processes, ["distill", name])
        return
    loaded, _ = load_dataset(settings.teacher)
    device = resolve_device(variant.distill.device)
    where = (device.type, resolve_precision(variant.distill.precision, device))
    inputs = (corpus.read_manifest(CORPUS)["sha256"], read_json(TEACHER / "manifest.json")["fingerprint"])
    done = []
    for seeds in variant.runs():
        checkpoint = Checkpoint(key_of("distill", variant, seeds, settings.corpus, settings.teacher, *inputs, *where))
        with progress_bar(name=f"{name}/{seeds.run}", unit="step", total=0) as progress:
            group = processes.join_group(device)
            loaded.teacher.to(group.device)
            trainer = Trainer(loaded, variant, seeds, checkpoint, group, _shower(progress))
            with checkpoint.locked() if group.main else nullcontext():
                student = trainer.run()
                if group.main:
                    _write(settings, trainer, student)
        group.wait()
        done.append(checkpoint)
    for checkpoint in done if group.main else ():
        checkpoint.remove()


def _shower(progress: Any) -> Any:
    def show(step: int, steps: int, row: HistoryRow) -> None:
        progress.total = steps
        shown = {
            row.phase: f"{row.loss:.3f}",
            "tok/s": f"{row.tokens_per_s:.0f}",
            "MiB": f"{row.rss_mib:.0f}",
        }
        progress.set_postfix(shown, refresh=False)
        progress.update(step - progress.n)

    return show


def _write(settings: params.Settings, trainer: Trainer, student: Any) -> None:
    variant, seed = trainer.variant, trainer.seeds.run
    card = trainer.card(code_digest(), settings.teacher)
    with written_aside(MODELS / variant.name / str(seed)) as aside:
        delta.save_student(aside, student, trainer.dataset.teacher, card)
        for step, weights in trainer.kept.items():
            delta.write_student(aside / CHECKPOINTS / str(step), weights, card.model_copy(update={"step": step}))
    with written_aside(RESULTS / "distill" / variant.name / str(seed)) as aside:
        aside.mkdir()
        write_rows(aside / "history.csv", trainer.log.history, HistoryRow)
        if trainer.log.coefficients:
            write_rows(aside / "coefficients.csv", trainer.log.coefficients, CoefficientRow)
        trainer.record(code_digest()).write(aside / "record.json")
