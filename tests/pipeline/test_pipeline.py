"""dvc.yaml, params.yaml and the import graph agree; one name runs from stage to subcommand to test."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from attnopt import mechanisms
from attnopt import settings as params
from attnopt.tools import study

PIPELINE = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
DISPATCH = {"attnopt/__init__.py", "attnopt/cli.py"}


def imports_of(file: Path) -> set[Path]:
    """The project's modules that a file imports, anywhere in it."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] in ("attnopt", "stages"):
                path = ROOT / name.replace(".", "/")
                found |= {p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()}
    return found


def reach(start: Path) -> set[str]:
    """What a file imports, directly or not; settings.py looks into mechanisms only to validate their options."""
    seen: set[Path] = set()
    todo = {start}
    while todo:
        file = todo.pop()
        seen.add(file)
        if str(file.relative_to(ROOT)) not in DISPATCH | {"attnopt/settings.py"}:
            todo |= imports_of(file) - seen
    return {str(p.relative_to(ROOT)) for p in seen} - DISPATCH


def deps(stage: str) -> list[str]:
    return PIPELINE[stage].get("do", PIPELINE[stage])["deps"]


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_stage_depends_on_every_module_that_it_imports(stage: str) -> None:
    listed = deps(stage)
    if {"models/${key}", "models"} & set(listed):  # a student carries the digest of the code that made it
        listed = listed + deps("distill")
    needed = reach(ROOT / "stages" / f"{stage.replace('-', '_')}.py")
    settings_only = {
        "attnopt/bench/params.py",
        "attnopt/report/params.py",
        "attnopt/bench/__init__.py",
        "attnopt/report/__init__.py",
    }
    missing = {m for m in needed - settings_only if not any(m == d or m.startswith(f"{d}/") for d in listed)}
    public = {f"attnopt/mechanisms/{kind}.py" for kind in mechanisms.mechanism_names()}
    own = public if "attnopt/mechanisms/${item}.py" in listed else set()
    assert missing - own == set()


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_stage_lists_no_file_that_is_not_there(stage: str) -> None:
    for dep in deps(stage):
        if "$" not in dep and dep.split("/")[0] in ("attnopt", "stages"):
            assert (ROOT / dep).exists(), dep


def test_one_name_from_stage_to_subcommand_to_file() -> None:
    for stage, entry in PIPELINE.items():
        assert entry.get("do", entry)["cmd"].split()[:2] == ["attnopt", stage]
        assert (ROOT / "stages" / f"{stage.replace('-', '_')}.py").is_file()


def test_dependencies_between_rooms_run_one_way() -> None:
    order = ["mechanisms", "student", "training", "stages"]
    rooms = {
        "mechanisms": "attnopt/mechanisms",
        "student": "attnopt/student",
        "training": "attnopt/training",
        "stages": "stages",
    }
    for i, room in enumerate(order):
        path = ROOT / rooms[room]
        for file in [path] if path.is_file() else path.rglob("*.py"):
            imported = {str(p.relative_to(ROOT)) for p in imports_of(file)}
            above = [rooms[r] for r in order[i + 1 :]]
            assert not [m for m in imported for a in above if m == a or m.startswith(f"{a}/")], file


def test_the_report_reads_records_only() -> None:
    code = "import sys, attnopt.report.page, stages.report; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_mechanism_is_in_the_default_study() -> None:
    assert set(mechanisms.mechanism_names()) <= set(params.load_settings(ROOT / "params.yaml").variants.values())


@pytest.mark.parametrize("name", ["mini", "gpt2", "smollm2"])
def test_studies_are_valid_and_the_default_is_what_is_committed(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # fmt: skip
    monkeypatch.chdir(ROOT)
    (tmp_path / "params.yaml").write_text(study.compose_study(name))
    params.load_settings(tmp_path / "params.yaml")
    if name == "mini":
        assert study.compose_study(name) == (ROOT / "params.yaml").read_text()


def test_params_are_written_as_dvc_writes_them() -> None:
    """`dvc exp run -S` rewrites the file: it must then differ in one line."""
    import io

    out = io.StringIO()
    text = (ROOT / "params.yaml").read_text()
    study.yaml_writer().dump(study.yaml_writer().load(text), out)
    assert out.getvalue() == text
