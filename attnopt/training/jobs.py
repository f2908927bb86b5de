"""Which students of a variant are to be trained: those that no longer hold. Needs no torch, so that a look is quick."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from attnopt.core.code import code_digest
from attnopt.core.keep import holds, key_of, remove_others
from attnopt.core.paths import CORPUS, LIBRARY, MODELS, RESULTS, TEACHER
from attnopt.records.corpus import CorpusManifest
from attnopt.records.distill import StudentCard, kinds_in
from attnopt.records.teacher import TeacherManifest
from attnopt.student.jobs import library_folder
from attnopt.teacher.params import TeacherParams
from attnopt.training.params import Seeds, Variant


@dataclass(frozen=True)
class TrainingJob:
    """A student to train.

    Attributes:
        student: the folder of its weights. out: that of its record. library: that of the student as transfer left it;
            None where there is to be none, as of a mix.
        blocks: of a mix, the folder of the library's student that each layer is taken from.
        key: digest of what it is a function of: the variant with this run's seeds, the teacher, the data, the code.
    """

    variant: Variant
    seeds: Seeds
    student: Path
    out: Path
    key: str
    library: Path | None = None
    blocks: Mapping[int, Path] = field(default_factory=dict)


def training_jobs(variant: Variant, teacher: TeacherParams, again: bool = False) -> list[TrainingJob]:
    """The students of a variant that do not hold, or all of them; folders of other seeds are removed.

    Raises: UserError where data/corpus or data/teacher is missing or damaged.
    """
    CorpusManifest.read(CORPUS / "manifest.json")
    TeacherManifest.read(TEACHER / "manifest.json")
    make = _mix_job if variant.is_mix else _job
    jobs = [make(variant, seeds, teacher) for seeds in variant.runs()]
    remove_others(MODELS / variant.name, [job.student for job in jobs])
    remove_others(RESULTS / "distill" / variant.name, [job.out for job in jobs])
    remove_others(LIBRARY / variant.name, [job.library for job in jobs if job.library])
    return [job for job in jobs if again or not _holds(job)]


def _job(variant: Variant, seeds: Seeds, teacher: TeacherParams) -> TrainingJob:
    key = _key("distill", variant, seeds, teacher, {variant.kind})
    return TrainingJob(variant, seeds, *_folders(variant, seeds), key, LIBRARY / variant.name / str(seeds.run))


def _mix_job(variant: Variant, seeds: Seeds, teacher: TeacherParams) -> TrainingJob:
    """It depends on the library's students as they are, and so on all that they are functions of."""
    blocks = {layer: library_folder(name, seeds.run) for layer, name in sorted(variant.options.layers.items())}
    folders = sorted(set(blocks.values()))
    kinds = {kind for folder in folders for kind in StudentCard.read(folder / "student.json").kinds}
    key = _key("mix", variant, seeds, teacher, kinds, *folders)
    return TrainingJob(variant, seeds, *_folders(variant, seeds), key, None, blocks)


def _folders(variant: Variant, seeds: Seeds) -> tuple[Path, Path]:
    """Of the weights and of the record."""
    return MODELS / variant.name / str(seeds.run), RESULTS / "distill" / variant.name / str(seeds.run)


def _key(stage: str, variant: Variant, seeds: Seeds, teacher: TeacherParams, kinds: set[str], *more: Path) -> str:
    every = sorted({"softmax", *kinds, *kinds_in(variant.options.model_dump())})
    code = code_digest(f"stages.{stage}", *(f"attnopt.mechanisms.{kind}" for kind in every))
    data = (CORPUS / "manifest.json", TEACHER / "manifest.json")
    given = sorted(variant.options.model_fields_set)  # what a budget may not choose
    return key_of(variant.model_dump(exclude={"seeds", "seed"}), given, tuple(seeds), teacher, *data, code, *more)


def _holds(job: TrainingJob) -> bool:
    cards = [folder / "student.json" for folder in (job.student, job.library) if folder]
    return all(holds(path, job.key) for path in (*cards, job.out / "record.json"))
