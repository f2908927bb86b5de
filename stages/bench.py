"""results/bench/NAME: what one variant costs against context length, beside the untouched teacher in the same run."""

import os
from functools import partial

from attnopt.bench.fresh_process import start_server
from attnopt.core.files import read_json, sha256, written_aside
from attnopt.core.machine import machine_fingerprint
from attnopt.core.paths import MODELS, RESULTS, TEACHER
from attnopt.core.progress import progress_bar


def run(name: str) -> None:
    load_before = os.getloadavg()[0]
    start_server()

    from attnopt.bench.plan import plans_of, run_bench
    from attnopt.bench.tables import bench_record
    from attnopt.core.checkpoint import key_of
    from attnopt.mechanisms import load_mechanism
    from attnopt.records.teacher import TeacherManifest
    from attnopt.settings import load_settings

    settings = load_settings()
    variant = settings.variant(name)
    student = MODELS / name / str(variant.seeds[0])
    manifest = TeacherManifest.model_validate(read_json(TEACHER / "manifest.json"))
    plans = plans_of(student, variant.swap, manifest, settings.teacher, settings.bench)
    found = run_bench(plans, settings.bench, progress=partial(progress_bar, name=f"bench {name}", unit="length"))
    control = load_mechanism(variant.kind).control
    weights = sha256(student / "student.json", student / "weights.safetensors")
    key = key_of("bench", settings.teacher, settings.bench, machine_fingerprint(), weights)
    with written_aside(RESULTS / "bench" / name) as aside:
        aside.mkdir()
        bench_record(name, variant.kind, control, settings.bench, load_before, found, key).write(aside / "record.json")
