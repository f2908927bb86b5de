"""results/evaluate/NAME: one variant's students against the teacher on held-out text."""

from functools import partial
from typing import Any

from attnopt import corpus, evaluate, mechanisms, params, teacher, token_classes
from attnopt.device import resolve
from attnopt.files import environment, write_json, written_aside
from attnopt.hf import delta
from attnopt.material import Material
from attnopt.probes import Probes
from attnopt.progress import bar
from stages import CORPUS, MODELS, RESULTS, material


def run(name: str) -> None:
    settings = params.load()
    variant = settings.variant(name)
    loaded, _ = material.load(settings)
    loaded.teacher.to(resolve(settings.evaluate.device))
    probes = Probes(loaded.teacher, loaded.blocks["valid"], loaded.blocks["train"], settings.evaluate)
    for seed in variant.seeds:
        student = delta.load(MODELS / name / str(seed), loaded.teacher.device)
        splits = {split: _measure(settings, loaded, student, split, f"{name}/{seed}") for split in ("valid", "test")}
        with written_aside(RESULTS / "evaluate" / name / str(seed)) as aside:
            aside.mkdir()
            record = {
                "variant": name,
                "kind": variant.kind,
                "seed": seed,
                "control": mechanisms.load(variant.kind).control,
                "splits": splits,
                **probes.record(student, seed),
                "environment": environment(),
            }
            write_json(aside / "record.json", record)


def _measure(settings: params.Params, loaded: Material, student: Any, split: str, name: str) -> dict[str, Any]:
    tokens = evaluate.per_token(
        student,
        teacher.head_of(student),
        partial(loaded.hidden, split),
        teacher.head_of(loaded.teacher),
        loaded.blocks[split],
        settings.evaluate.batch,
        progress=partial(bar, name=f"{name} {split}", unit="batch"),
    )
    blocks, train = loaded.blocks[split], loaded.blocks["train"]
    classes = {
        "frequency": token_classes.by_frequency(blocks, train),
        "context": token_classes.by_context(blocks),
    }
    result = evaluate.summary(tokens, corpus.manifest_of(CORPUS)["splits"][split])
    return result | {"kl_by_class": token_classes.rows(tokens, classes)}
