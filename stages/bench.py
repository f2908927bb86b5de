"""results/bench/NAME: what one variant costs against context length, beside the untouched teacher in the same run."""

import os
from functools import partial
from typing import Any

from attnopt.bench.isolate import start_server
from stages import MODELS, RESULTS, TEACHER


def run(name: str) -> None:
    load_before = os.getloadavg()[0]
    start_server()

    from attnopt import mechanisms, params
    from attnopt.bench.capacity import capacities
    from attnopt.bench.record import record
    from attnopt.bench.run import measure
    from attnopt.files import write_json, written_aside
    from attnopt.progress import bar

    settings = params.load()
    variant = settings.variant(name)
    plans = _plans(settings, name)
    found = measure(plans, settings.bench, progress=partial(bar, name=f"bench {name}", unit="length"))
    control = mechanisms.load(variant.kind).control
    with written_aside(RESULTS / "bench" / name) as aside:
        aside.mkdir()
        made = record(name, variant.kind, control, settings.bench, load_before, found)
        made["capacity"] = capacities(found, settings.bench.memory_gib)
        write_json(aside / "record.json", made)


def _plans(settings: Any, name: str) -> list[Any]:
    from attnopt.bench.run import Plan
    from attnopt.bench.subjects import Operation, Student, Teacher
    from attnopt.files import read_json
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
