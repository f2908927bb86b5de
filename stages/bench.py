"""results/bench: what the variants cost against context length, beside the teacher's softmax in the same run."""

import os

from attnopt.bench.fresh_process import start_server
from attnopt.bench.params import BenchParams
from attnopt.core.machine import machine_fingerprint
from attnopt.core.paths import TEACHER
from attnopt.student.jobs import jobs_to_do
from attnopt.teacher.params import TeacherParams


def run(
    students: dict[str, str],
    teacher: TeacherParams,
    bench: BenchParams,
    only: str | None = None,
    again: bool = False,
) -> None:
    """All variants without a record that holds, or one; the first seed's student of each."""
    load_before, hardware = os.getloadavg()[0], machine_fingerprint()
    inputs = (bench, teacher, hardware, TEACHER / "manifest.json")
    jobs = jobs_to_do("bench", students, only, again, *inputs, per_seed=False)
    if not jobs:
        return
    start_server()  # imports in the background what this process imports next, so that both take the time of one
    from attnopt.bench.run import bench_variants

    bench_variants(jobs, teacher, bench, hardware, load_before)
