"""The stage bench: variants measured one after the other in one process, a record each."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from attnopt.bench.params import BenchParams
from attnopt.bench.plan import plans_of, run_bench
from attnopt.bench.tables import bench_record
from attnopt.core.errors import UserError
from attnopt.core.machine import machine_line
from attnopt.core.paths import TEACHER
from attnopt.core.progress import progress_bar
from attnopt.records.bench import BenchRecord
from attnopt.records.teacher import TeacherManifest
from attnopt.student.jobs import Job
from attnopt.teacher.params import TeacherParams

CHANGED = """attnopt: other hardware than the bench's records were measured on, so the bench measures again.
  was: {before}
  is:  {now}
To keep those records instead, stop this run, then: git restore dvc.lock && dvc checkout && dvc freeze bench"""


def bench_variants(
    jobs: Sequence[Job], teacher: TeacherParams, params: BenchParams, hardware: dict[str, Any], load_before: float
) -> None:
    """Measure every variant and write its record; what was measured stays when the run is stopped.

    Args:
        hardware: the fingerprint of this machine.
        load_before: processes that wanted a core in the minute before the bench.
    """
    manifest = TeacherManifest.read(TEACHER / "manifest.json")
    now = machine_line(hardware)
    for before in sorted({line for job in jobs if (line := _measured_on(job)) not in (None, now)}):
        print(CHANGED.format(before=before, now=now), file=sys.stderr)
    for job in jobs:
        plans = plans_of(job.student, job.card, manifest, teacher, params)
        show = partial(progress_bar, name=f"bench {job.card.variant}", unit="length")
        found = run_bench(plans, params, progress=show)
        bench_record(job.card, params, now, load_before, found, job.key).write(job.record)


def _measured_on(job: Job) -> str | None:
    """The hardware of the record that lies there; None where there is none that can be read."""
    try:
        return BenchRecord.read(job.record).hardware
    except UserError:
        return None
