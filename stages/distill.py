"""models/NAME and results/distill/NAME: one variant distilled, with every seed."""

from contextlib import nullcontext
from typing import Any

from attnopt import settings as params
from attnopt.core import distributed as processes
from attnopt.core.checkpoint import Checkpoint, code_digest, key_of
from attnopt.core.device import resolve_device, resolve_precision
from attnopt.core.files import read_json, write_json, written_aside
from attnopt.core.machine import environment
from attnopt.core.paths import CHECKPOINTS, CORPUS, MODELS, RESULTS, TEACHER
from attnopt.core.progress import progress_bar
from attnopt.corpus import blocks as corpus
from attnopt.student import files as delta
from attnopt.targets.dataset import Dataset, load_dataset
from attnopt.teacher import model as teacher
from attnopt.training.log import COEFFICIENTS, HISTORY, write_csv
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
            trainer = Trainer(loaded, variant, seeds, checkpoint, progress=_shower(progress))
            with checkpoint.locked() if trainer.group.main else nullcontext():
                student = trainer.run()
                if trainer.group.main:
                    _write(settings, trainer, student, loaded)
        trainer.group.wait()
        done.append(checkpoint)
    for checkpoint in done if trainer.group.main else ():
        checkpoint.remove()


def _shower(progress: Any) -> Any:
    def show(step: int, steps: int, row: dict[str, Any]) -> None:
        progress.total = steps
        shown = {
            row["stage"]: f"{row['loss']:.3f}",
            "tok/s": f"{row['tokens_per_s']:.0f}",
            "MiB": f"{row['rss_mib']:.0f}",
        }
        progress.set_postfix(shown, refresh=False)
        progress.update(step - progress.n)

    return show


def _write(settings: params.Settings, trainer: Trainer, student: Any, loaded: Dataset) -> None:
    variant, seed = trainer.variant, trainer.seeds.run
    description = {
        "variant": variant.name,
        "kind": variant.kind,
        "options": variant.options.model_dump(),
        "layers": variant.layers,
        "seed": seed,
        "teacher": settings.teacher.model_dump(),
        "code": code_digest(),
    }
    with written_aside(MODELS / variant.name / str(seed)) as aside:
        delta.save_student(aside, student, loaded.teacher, description)
        fingerprint = teacher.teacher_fingerprint(loaded.teacher)
        for step, weights in trainer.kept.items():
            delta.write_student(aside / CHECKPOINTS / str(step), weights, fingerprint, description | {"step": step})
    with written_aside(RESULTS / "distill" / variant.name / str(seed)) as aside:
        aside.mkdir()
        write_csv(aside / "history.csv", trainer.journal.history, HISTORY)
        if trainer.journal.coefficients:
            write_csv(aside / "coefficients.csv", trainer.journal.coefficients, COEFFICIENTS)
        write_json(aside / "record.json", description | trainer.record() | {"environment": environment()})
