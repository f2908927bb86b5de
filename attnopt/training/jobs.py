"""Which students of a variant are to be trained: those that no longer hold. Needs no torch, so that a look is quick."""

from dataclasses import dataclass
from pathlib import Path

from attnopt.core.code import code_digest
from attnopt.core.keep import holds, key_of, remove_others
from attnopt.core.paths import CORPUS, MODELS, RESULTS, TEACHER
from attnopt.records.corpus import CorpusManifest
from attnopt.records.teacher import TeacherManifest
from attnopt.teacher.params import TeacherParams
from attnopt.training.params import Seeds, Variant


@dataclass(frozen=True)
class TrainingJob:
    """A student to train.

    Attributes:
        student: the folder of its weights. out: that of its record.
        key: digest of what it is a function of: the variant with this run's seeds, the teacher, the data, the code.
    """

    variant: Variant
    seeds: Seeds
    student: Path
    out: Path
    key: str


def training_jobs(variant: Variant, teacher: TeacherParams, again: bool = False) -> list[TrainingJob]:
    """The students of a variant that do not hold, or all of them; folders of other seeds are removed.

    Raises: UserError where data/corpus or data/teacher is missing or damaged.
    """
    CorpusManifest.read(CORPUS / "manifest.json")
    TeacherManifest.read(TEACHER / "manifest.json")
    jobs = [_job(variant, seeds, teacher) for seeds in variant.runs()]
    remove_others(MODELS / variant.name, [job.student for job in jobs])
    remove_others(RESULTS / "distill" / variant.name, [job.out for job in jobs])
    return [job for job in jobs if again or not _holds(job)]


def _job(variant: Variant, seeds: Seeds, teacher: TeacherParams) -> TrainingJob:
    code = code_digest("stages.distill", "attnopt.mechanisms.softmax", f"attnopt.mechanisms.{variant.kind}")
    data = (CORPUS / "manifest.json", TEACHER / "manifest.json")
    given = sorted(variant.options.model_fields_set)  # what a budget may not choose
    key = key_of(variant.model_dump(exclude={"seeds", "seed"}), given, tuple(seeds), teacher, *data, code)
    seed = str(seeds.run)
    return TrainingJob(variant, seeds, MODELS / variant.name / seed, RESULTS / "distill" / variant.name / seed, key)


def _holds(job: TrainingJob) -> bool:
    return holds(job.student / "student.json", job.key) and holds(job.out / "record.json", job.key)
