"""results/evaluate: the variants' students against the teacher on held-out text."""

from attnopt.core.paths import CORPUS, TEACHER
from attnopt.evaluation.params import EvaluateParams
from attnopt.student.jobs import jobs_to_do
from attnopt.teacher.params import TeacherParams


def run(
    students: dict[str, str],
    teacher: TeacherParams,
    evaluate: EvaluateParams,
    only: str | None = None,
    again: bool = False,
) -> None:
    """All students without a record that holds, or those of one variant."""
    data = (CORPUS / "manifest.json", TEACHER / "manifest.json")
    jobs = jobs_to_do("evaluate", students, only, again, evaluate, teacher, *data)
    if not jobs:
        return
    from attnopt.evaluation.evaluate import evaluate_students  # torch, only where there is work

    evaluate_students(jobs, teacher, evaluate)
