"""What evaluate and sample share: one process for all students, which leaves records that still hold as they are."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from attnopt import mechanisms
from attnopt.core.checkpoint import code_digest
from attnopt.core.files import read_json, sha256, write_json, written_aside
from attnopt.core.machine import environment
from attnopt.core.paths import MODELS, RESULTS
from attnopt.settings import Settings
from attnopt.training.params import Variant


class Job(NamedTuple):
    """One student's record to make.

    Attributes:
        out: the record's folder. key: digest of what the record is a function of.
    """

    variant: Variant
    seed: int
    out: Path
    key: str

    @property
    def student(self) -> Path:
        return MODELS / self.variant.name / str(self.seed)

    def write(self, **found: Any) -> None:
        record = {"variant": self.variant.name, "kind": self.variant.kind, "seed": self.seed, "key": self.key}
        record["control"] = mechanisms.load_mechanism(self.variant.kind).control
        with written_aside(self.out) as aside:
            aside.mkdir()
            write_json(aside / "record.json", record | found | {"environment": environment()})


def jobs_to_do(stage: str, settings: Settings, name: str | None, *inputs: object) -> list[Job]:
    """The students of one variant, or those of all variants whose record is not of this student, code and `inputs`.

    With all variants, records of others than there are now are removed.
    """
    chosen = [settings.variant(name) for name in ([name] if name else settings.variants)]
    shared = sha256(code_digest(), *sorted(Path(__file__).parent.glob("*.py")), *map(repr, inputs))
    found = []
    for variant, seed in [(v, s) for v in chosen for s in v.seeds]:
        out, student = RESULTS / stage / variant.name / str(seed), MODELS / variant.name / str(seed)
        key = sha256(shared, variant.kind, *(part for file in _files(student) for part in (str(file), file)))
        found.append(Job(variant, seed, out, key))
    if name:
        return found
    keep = {job.out for job in found}
    for out in (RESULTS / stage).glob("*/*"):
        if out not in keep:
            shutil.rmtree(out)
    for folder in (RESULTS / stage).glob("*"):
        if not any(folder.iterdir()):
            folder.rmdir()
    return [job for job in found if not _holds(job)]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _holds(job: Job) -> bool:
    file = job.out / "record.json"
    return file.is_file() and read_json(file).get("key") == job.key
