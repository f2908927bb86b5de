"""models/NAME and results/distill/NAME: one mix of the library's layers distilled, with every seed."""

from attnopt.teacher.params import TeacherParams
from attnopt.training.jobs import training_jobs
from attnopt.training.params import Variant


def run(mix: Variant, teacher: TeacherParams, again: bool = False) -> None:
    """All students of the mix that no longer hold."""
    jobs = training_jobs(mix, teacher, again)
    if not jobs:
        return
    from attnopt.training.run import train_students  # torch, only where there is work

    train_students(jobs, teacher)
