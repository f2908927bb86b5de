"""models/NAME and results/distill/NAME: one variant distilled, with every seed."""

from typing import Any

from attnopt import corpus, params
from attnopt.checkpoint import Checkpoint, key_of
from attnopt.device import precision, resolve
from attnopt.distill import COEFFICIENTS, HISTORY, Trainer, write_csv
from attnopt.files import environment, read_json, write_json, written_aside
from attnopt.hf import delta
from attnopt.material import Material
from attnopt.progress import bar
from stages import CORPUS, MODELS, RESULTS, TEACHER, material


def run(name: str) -> None:
    settings = params.load()
    variant = settings.variant(name)
    loaded, _ = material.load(settings)
    device = resolve(variant.distill.device)
    where = (device.type, precision(variant.distill.precision, device))
    inputs = (corpus.manifest_of(CORPUS)["sha256"], read_json(TEACHER / "manifest.json")["fingerprint"])
    done = []
    for seed in settings.seeds:
        checkpoint = Checkpoint(key_of("distill", variant, seed, settings.corpus, settings.teacher, *inputs, *where))
        with checkpoint.locked(), bar(name=f"{name}/{seed}", unit="step", total=0) as progress:
            trainer = Trainer(loaded, variant, seed, checkpoint, progress=_shower(progress))
            student = trainer.run()
            _write(settings, trainer, student, loaded)
        done.append(checkpoint)
    for checkpoint in done:
        checkpoint.remove()


def _shower(progress: Any) -> Any:
    def show(step: int, steps: int, row: dict[str, Any]) -> None:
        progress.total = steps
        shown = {"loss": f"{row['loss']:.3f}", "tok/s": f"{row['tokens_per_s']:.0f}", "MiB": f"{row['rss_mib']:.0f}"}
        progress.set_postfix(shown, refresh=False)
        progress.update(step - progress.n)

    return show


def _write(settings: params.Params, trainer: Trainer, student: Any, loaded: Material) -> None:
    variant, seed = trainer.variant, trainer.seed
    description = {
        "variant": variant.name,
        "kind": variant.kind,
        "options": variant.options.model_dump(),
        "layers": variant.layers,
        "seed": seed,
        "teacher": settings.teacher.model_dump(),
    }
    with written_aside(MODELS / variant.name / str(seed)) as aside:
        delta.save(aside, student, loaded.teacher, description)
    with written_aside(RESULTS / "distill" / variant.name / str(seed)) as aside:
        aside.mkdir()
        write_csv(aside / "history.csv", trainer.log.history, HISTORY)
        if trainer.log.coefficients:
            write_csv(aside / "coefficients.csv", trainer.log.coefficients, COEFFICIENTS)
        write_json(aside / "record.json", description | trainer.record() | {"environment": environment()})
