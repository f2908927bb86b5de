"""dvc.yaml, params.yaml and the import graph agree; one name runs from stage to subcommand to test."""

import ast
import importlib
import inspect
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, committed_kinds
from ruamel.yaml import YAML

from attnopt import mechanisms, settings
from attnopt.core.code import code_digest, import_closure, imports_of
from attnopt.tools import study

PIPELINE = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
ROOMS = (
    *("core", "statistics", "records", "ops", "teacher", "mechanisms", "corpus", "report", "conformance"),
    *("targets", "student", "training", "evaluation", "bench", "search", "export"),
    *("settings", "tools", "stages", "convert", "cli"),
)
"""From the ground up: a room imports those before it and itself, and no other."""
VARIANT = ["seeds", "seed", "state", "transfer", "align", "distill", "lora", "${key}"]
"""The sections of params.yaml that a variant is made of."""
SECTIONS = {
    "variant": VARIANT,
    "mix": [*(key for key in VARIANT if key not in ("transfer", "${key}")), "mixes.${key}"],
    "students": ["variants", "mixes"],
}
"""By the name of a stage's parameter, where it is not the section's own."""


def stage_file(stage: str) -> Path:
    return ROOT / "stages" / f"{stage.replace('-', '_')}.py"


def entry(stage: str) -> dict:
    return PIPELINE[stage].get("do", PIPELINE[stage])


def is_door(file: Path) -> bool:
    """Whether it only says what a folder is, or is the library's own entry."""
    body = ast.parse(file.read_text()).body
    return file == ROOT / "attnopt/__init__.py" or all(isinstance(node, ast.Expr) for node in body)


def relative(files: set[Path]) -> set[str]:
    return {file.relative_to(ROOT).as_posix() for file in files if not is_door(file)}


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_stage_depends_on_every_module_that_it_imports(stage: str) -> None:
    listed = entry(stage)["deps"]
    if {"models", "library"} & set(listed):  # a student carries the digest of the code that made it
        listed = listed + entry("distill")["deps"]
    kinds = {f"attnopt/mechanisms/{kind}.py" for kind in mechanisms.mechanism_names()}
    needed = relative(import_closure([stage_file(stage)]))
    outside = {m for m in needed if not any(m == d or m.startswith(f"{d}/") for d in listed)}
    assert outside - (kinds if "attnopt/mechanisms/${item}.py" in listed else set()) == set()


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_stage_lists_no_file_that_is_not_there_and_none_that_it_does_not_need(stage: str) -> None:
    needed = relative(import_closure([stage_file(stage)]))
    needed |= {f"attnopt/mechanisms/{kind}.py" for kind in mechanisms.mechanism_names()}
    needed |= relative(import_closure((ROOT / "attnopt/mechanisms").glob("*.py")))
    for dep in entry(stage)["deps"]:
        if "$" in dep or dep.split("/")[0] not in ("attnopt", "stages"):
            continue
        assert (ROOT / dep).exists(), dep
        assert dep.startswith("attnopt/assets") or any(m == dep or m.startswith(f"{dep}/") for m in needed), dep


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_stage_is_handed_exactly_the_sections_that_it_depends_on(stage: str) -> None:
    run = importlib.import_module(f"stages.{stage_file(stage).stem}").run
    taken = [p.name for p in inspect.signature(run).parameters.values() if p.default is p.empty]
    sections = [key for name in taken for key in SECTIONS.get(name, [name])]
    assert sorted(sections) == sorted(entry(stage)["params"])
    assert {key.split(".")[0] for key in sections} - {"${key}"} <= set(settings.Settings.model_fields)


@pytest.mark.parametrize("file", sorted((ROOT / "stages").glob("*.py")), ids=lambda file: file.stem)
def test_a_stage_is_glue_of_forty_lines_at_most(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 40


def test_one_name_from_stage_to_subcommand_to_file() -> None:
    from typer.main import get_command

    from attnopt.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    for stage in PIPELINE:
        assert entry(stage)["cmd"].split()[:2] == ["attnopt", stage]
        assert stage in commands
        assert stage_file(stage).is_file()
    assert {f.stem for f in (ROOT / "stages").glob("*.py")} - {"__init__"} == {stage_file(s).stem for s in PIPELINE}


def room_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "stages" else parts[1]


def sources() -> Iterator[Path]:
    for file in [*(ROOT / "attnopt").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        if file != ROOT / "attnopt/__init__.py":
            yield file


def test_no_room_imports_one_above_it() -> None:
    doors = {ROOT / "attnopt/__init__.py", ROOT / "stages/__init__.py"}
    assert {room_of(file) for file in sources()} == set(ROOMS)
    for file in sources():
        floor = ROOMS.index(room_of(file))
        above = [m for m in imports_of(file) - doors if ROOMS.index(room_of(m)) > floor]
        assert not above, (file, above)


def test_no_modules_import_each_other_in_a_circle() -> None:
    doors = set((ROOT / "attnopt").rglob("__init__.py"))  # python runs those around a module, whatever they hold
    below = {file: imports_of(file) - doors - {file} for file in sources()}
    while ground := [file for file, imports in below.items() if not imports]:
        below = {file: imports - set(ground) for file, imports in below.items() if file not in ground}
    circles = {f"{file.relative_to(ROOT)} -> {m.relative_to(ROOT)}" for file, imports in below.items() for m in imports}
    assert not circles


def test_the_report_imports_records_and_statistics_only() -> None:
    for file in (ROOT / "attnopt/report").rglob("*.py"):
        rooms = {room_of(m) for m in imports_of(file) if m != ROOT / "attnopt/__init__.py"}
        assert rooms <= {"core", "records", "statistics", "report"}, file


def test_code_of_another_chapter_changes_no_student_and_that_of_a_kernel_its_own_alone() -> None:
    def runs(kind: str) -> set[str]:
        modules = (
            stage_file("distill"),
            ROOT / f"attnopt/mechanisms/{kind}.py",
            ROOT / "attnopt/mechanisms/softmax.py",
        )
        return relative(import_closure(modules))

    for kind in mechanisms.mechanism_names():
        code = runs(kind)
        assert not [m for m in code if m.split("/")[1] in ("report", "evaluation", "bench", "settings.py", "cli.py")]
        assert any(m.startswith("attnopt/ops/nsa/") for m in code) == (kind in ("moba", "nsa"))
        assert len([m for m in code if m.startswith("attnopt/mechanisms/") and m.count("/") == 2]) <= 5
    assert code_digest("stages.distill") != code_digest("stages.distill", "attnopt.mechanisms.nsa")


@pytest.mark.parametrize(
    "stage",
    [
        "report",
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("distill", "mix", "search", "evaluate", "sample", "bench")),
    ],
)
def test_the_stages_look_without_torch(stage: str) -> None:
    """What has nothing to do says so before torch is imported; the report never needs it."""
    code = "import sys, stages.{}, attnopt.settings; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    command = [sys.executable, "-c", code.format(stage)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_every_mechanism_is_in_the_study_of_all() -> None:
    everything = YAML(typ="safe").load((ROOT / "studies/all.yaml").read_text())
    assert set(committed_kinds()) <= set(everything["variants"].values())


@pytest.mark.parametrize("name", study.study_names())
def test_studies_are_valid(name: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(study.compose_study(name))
    found = settings.load_settings(tmp_path / "params.yaml")
    searched = found.search.variants or [n for n, kind in found.variants.items() if n not in found.controls]
    shares = [found.variant(n).state.share or 1.0 for n in searched]
    assert min(shares) <= min(found.search.budgets), "no mix is so small"


def test_params_are_written_as_dvc_writes_them() -> None:
    """`dvc exp run -S` rewrites the file: it must then differ in one line."""
    out = io.StringIO()
    text = (ROOT / "studies/mini.yaml").read_text()
    study.yaml_writer().dump(study.yaml_writer().load(text), out)
    assert out.getvalue() == text
