"""results/sample: what the variants' students write, beside the teacher."""

from attnopt.core.paths import CORPUS, TEACHER
from attnopt.evaluation.params import SampleParams
from attnopt.student.jobs import jobs_to_do
from attnopt.teacher.params import TeacherParams


def run(
    students: dict[str, str],
    teacher: TeacherParams,
    sample: SampleParams,
    only: str | None = None,
    again: bool = False,
) -> None:
    """All students without a record that holds, or those of one variant."""
    data = (CORPUS / "manifest.json", TEACHER / "manifest.json")
    jobs = jobs_to_do("sample", students, only, again, sample, teacher, *data)
    if not jobs:
        return
    from attnopt.evaluation.sample import sample_students  # torch, only where there is work

    sample_students(jobs, teacher, sample)
