"""results/evaluate/NAME: one variant's students against the teacher on held-out text."""

from functools import partial
from pathlib import Path
from typing import Any

from attnopt import corpus, evaluate, mechanisms, params, teacher, token_classes
from attnopt.device import resolve
from attnopt.files import environment, write_json, written_aside
from attnopt.hf import delta
from attnopt.material import Material
from attnopt.probes import Probes
from attnopt.progress import bar
from stages import CORPUS, MODELS, RESULTS, checkpoints, material


def run(name: str) -> None:
    settings = params.load()
    variant = settings.variant(name)
    loaded, _ = material.load(settings)
    loaded.teacher.to(resolve(settings.evaluate.device))
    probes = Probes(loaded.teacher, loaded.blocks["valid"], loaded.blocks["train"], settings.evaluate)
    for seed in variant.seeds:
        folder = MODELS / name / str(seed)
        student = _load(folder, loaded)
        record = {
            "variant": name,
            "kind": variant.kind,
            "seed": seed,
            "control": mechanisms.load(variant.kind).control,
            "splits": {split: _measure(settings, loaded, student, split, folder) for split in corpus.HELD_OUT},
            **probes.record(student, seed),
            "checkpoints": [
                {"step": step, "splits": {"test": _measure(settings, loaded, _load(path, loaded), "test", path)}}
                for step, path in checkpoints(folder).items()
            ],
            "environment": environment(),
        }
        with written_aside(RESULTS / "evaluate" / name / str(seed)) as aside:
            aside.mkdir()
            write_json(aside / "record.json", record)


def _load(folder: Path, loaded: Material) -> Any:
    return delta.load(folder, loaded.teacher.device)


def _measure(settings: params.Params, loaded: Material, student: Any, split: str, folder: Path) -> dict[str, Any]:
    tokens = evaluate.per_token(
        student,
        teacher.head_of(student),
        partial(loaded.hidden, split),
        teacher.head_of(loaded.teacher),
        loaded.blocks[split],
        settings.evaluate.batch,
        progress=partial(bar, name=f"{folder} {split}", unit="batch"),
    )
    blocks, train = loaded.blocks[split], loaded.blocks["train"]
    classes = {
        "frequency": token_classes.by_frequency(blocks, train),
        "context": token_classes.by_context(blocks),
    }
    result = evaluate.summary(tokens, corpus.manifest_of(CORPUS)["splits"][split])
    return result | {"kl_by_class": token_classes.rows(tokens, classes)}
