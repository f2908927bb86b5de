"""results/bench/NAME: what one variant costs against context length, beside the untouched teacher in the same run."""

import os
from functools import partial
from typing import Any

from attnopt.bench.fresh_process import start_server
from attnopt.core.paths import MODELS, RESULTS, TEACHER


def run(name: str) -> None:
    load_before = os.getloadavg()[0]
    start_server()

    from attnopt import mechanisms
    from attnopt import settings as params
    from attnopt.bench.latency import run_bench
    from attnopt.bench.tables import bench_record
    from attnopt.core.files import write_json, written_aside
    from attnopt.core.progress import progress_bar

    settings = params.load_settings()
    variant = settings.variant(name)
    plans = _plans(settings, name)
    found = run_bench(plans, settings.bench, progress=partial(progress_bar, name=f"bench {name}", unit="length"))
    control = mechanisms.load_mechanism(variant.kind).control
    with written_aside(RESULTS / "bench" / name) as aside:
        aside.mkdir()
        made = bench_record(name, variant.kind, control, settings.bench, load_before, found)
        write_json(aside / "record.json", made)


def _plans(settings: Any, name: str) -> list[Any]:
    from attnopt.bench.latency import Plan
    from attnopt.bench.subjects import Operation, Student, Teacher
    from attnopt.core.files import read_json
    from attnopt.mechanisms import Geometry

    variant = settings.variant(name)
    shape = read_json(TEACHER / "manifest.json")["config"]
    sizes = {key: shape[key] for key in ("heads", "kv_heads", "head_dim", "hidden")}
    geometry = Geometry(**sizes, scaling=shape["head_dim"] ** -0.5)
    student = Student(MODELS / name / str(variant.seeds[0]))
    own = Operation(variant.kind, geometry, variant.options.model_dump())
    return [
        Plan("model", [student, Teacher(settings.teacher)], settings.bench.lengths),
        Plan("operation", [own, Operation("softmax", geometry, name="softmax")], settings.bench.operation_lengths),
    ]
