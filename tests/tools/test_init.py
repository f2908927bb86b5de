"""`attnopt init`: a folder made whole or not at all, a pipeline without source files, and code.json that it depends on."""

import re
from pathlib import Path

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from attnopt.core.code import OWN, use_own_mechanisms
from attnopt.core.errors import RunError, UserError
from attnopt.settings import load_settings
from attnopt.tools import init, installed
from attnopt.tools.init import init_study, note_of_pipeline, write_pipeline
from attnopt.tools.installed import installed_code
from attnopt.tools.pipeline import is_current, study_pipeline

FILES = {".gitattributes", ".gitignore", "README.md", "dvc.yaml", "mechanisms", "params.yaml"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def stages(text: str) -> dict:
    return {name: stage.get("do", stage) for name, stage in YAML(typ="safe").load(text)["stages"].items()}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study without git and DVC, in which the command line stands."""
    init_study(tmp_path / "study", "mini", git=False, dvc=False)
    monkeypatch.chdir(tmp_path / "study")
    monkeypatch.setenv(OWN, "unset")  # so that it is unset again at the end
    monkeypatch.delenv(OWN)
    use_own_mechanisms(Path())
    return tmp_path / "study"


@pytest.mark.parametrize("name", ["mini", "smollm2", "gpt2", "all"])
def test_a_study_holds_what_was_asked_for(tmp_path: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    init_study(tmp_path / "study", name, git=False, dvc=False)
    assert names(tmp_path / "study") == FILES
    assert load_settings(tmp_path / "study/params.yaml", variants=False).variants
    told = YAML(typ="safe").load((tmp_path / "study/params.yaml").read_text())
    assert told["teacher"].get("id") == YAML(typ="safe").load((ROOT / f"studies/{name}.yaml").read_text()).get(
        "teacher", {}
    ).get("id")
    assert f"the study '{name}'" in capsys.readouterr().out
    assert names(tmp_path) == {"study"}


def test_a_folder_that_is_not_empty_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study/notes.txt").write_text("mine")
    for folder in ("study", "study/notes.txt"):
        with pytest.raises(UserError, match=f"{folder} is there and not an empty folder; a study wants a new one"):
            init_study(tmp_path / folder, "mini", git=False, dvc=False)
    with pytest.raises(UserError, match="what is to hold it is no folder"):
        init_study(tmp_path / "study/notes.txt/new", "mini", git=False, dvc=False)
    assert (names(tmp_path), names(tmp_path / "study")) == ({"study"}, {"notes.txt"})


def test_an_unknown_study_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown study 'smolm2' \(did you mean 'smollm2'\?\); known: all, gpt2, mini"):
        init_study(tmp_path / "study", "smolm2", git=False, dvc=False)
    assert names(tmp_path) == set()


def test_an_empty_folder_is_filled_and_stays_itself(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    before = (tmp_path / "study").stat().st_ino
    init_study(tmp_path / "study", "mini", git=False, dvc=False)
    assert names(tmp_path / "study") == FILES
    assert (tmp_path / "study").stat().st_ino == before
    assert names(tmp_path) == {"study"}


def test_what_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="git is not installed; --no-git makes a study without it"):
        init_study(tmp_path / "study", "mini")
    (tmp_path / "git").write_text("#!/bin/sh\necho no room >&2\nexit 3\n")
    (tmp_path / "git").chmod(0o755)
    with pytest.raises(RunError, match="`git init --quiet` failed: no room"):
        init_study(tmp_path / "study", "mini")
    assert names(tmp_path) == {"git"}


def test_git_is_left_out_where_the_study_lies_in_a_repository(tmp_path: Path) -> None:
    init_study(tmp_path / "outer", "mini", dvc=False)
    assert names(tmp_path / "outer") == FILES | {".git"}
    init_study(tmp_path / "outer/inner", "mini", dvc=False)
    assert names(tmp_path / "outer/inner") == FILES
    init_study(tmp_path / "outer/own", "mini", git=True, dvc=False)
    assert names(tmp_path / "outer/own") == FILES | {".git"}


@pytest.mark.parametrize(
    ("git", "around", "no_scm"), [(True, False, False), (False, False, True), (False, True, False)]
)
def test_dvc_finds_the_repository_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, git: bool, around: bool, no_scm: bool
) -> None:
    asked = []

    def run(*command: str, cwd: Path) -> None:
        asked.append(command[-1] == "--no-scm" if "dvc" in command else "git")
        (cwd / ".dvc").mkdir(exist_ok=True)

    monkeypatch.setattr(init, "_run", run)
    if around:
        (tmp_path / ".git").mkdir()
    init_study(tmp_path / "study", "mini", git=git)
    assert asked == (["git", False] if git else [True])
    config = (tmp_path / "study/.dvc/config").read_text()
    assert "analytics = false" in config
    assert ("no_scm = true" in config) == no_scm


def test_the_pipeline_is_the_repositorys_with_code_json_in_place_of_source_files(study: Path) -> None:
    made, own = stages((study / "dvc.yaml").read_text()), stages((ROOT / "dvc.yaml").read_text())
    assert list(made) == ["code", *own]
    assert made["code"] == {"cmd": "attnopt code", "always_changed": True, "outs": [{"code.json": {"cache": False}}]}
    known = installed_code()
    for name, stage in own.items():
        keys = made[name]["params"].pop()["code.json"]
        data = [dep for dep in stage["deps"] if not dep.startswith(("attnopt/", "stages/"))]
        assert made[name] == stage | {"deps": data} if data else {k: v for k, v in stage.items() if k != "deps"}
        assert keys[0] == f"stages.{name}"
        for kind, _, item in (key.partition(".") for key in keys):
            assert item in (*known[kind], "", "${item}")
        assert ("assets.mini-gpt2" in keys) == ("attnopt/assets/mini-gpt2" in stage["deps"])
    assert own["distill"]["deps"].count("attnopt/mechanisms/${item}.py") == 1


def test_a_kind_is_a_key_of_the_variants_that_have_it() -> None:
    params = {name: stage.get("params", [{}])[-1].get("code.json") for name, stage in stages(study_pipeline()).items()}
    assert params["distill"] == ["stages.distill", "mechanisms.softmax", "mechanisms.${item}", "assets.mini-gpt2"]
    assert params["mix"] == ["stages.mix", "mechanisms", "assets.mini-gpt2"]
    assert params["tokenize"] == ["stages.tokenize", "assets.enwiki-sample", "assets.mini-gpt2"]


def test_another_versions_pipeline_is_told_and_written_anew(study: Path) -> None:
    file = study / "dvc.yaml"
    whole = file.read_text()
    assert is_current(whole + "# a stage of my own\n")
    assert note_of_pipeline() is None
    file.write_text(re.sub("Pipeline [0-9a-f]+", "Pipeline 0123", whole))
    assert note_of_pipeline() == "dvc.yaml is of another version of attnopt: `attnopt init --pipeline .` writes it anew"
    write_pipeline(study)
    assert file.read_text() == whole
    with pytest.raises(UserError, match="is no study"):
        write_pipeline(study.parent)


def test_code_json_follows_a_mechanism_of_ones_own_and_what_it_imports(study: Path) -> None:
    before = installed_code()
    for name in ("decay", "_decay_parts", "_decay_more"):
        (study / f"mechanisms/{name}.py").write_text({"decay": "from . import _decay_parts\n"}.get(name, ""))
    (study / "mechanisms/_decay_parts.py").write_text("from attnopt.mechanisms._decay_more import *\n")
    made = installed_code()
    digest = made["mechanisms"].pop("decay")
    assert made == before
    for name in ("decay", "_decay_parts", "_decay_more"):
        file = study / f"mechanisms/{name}.py"
        text = file.read_text()
        file.write_text(text + "# other\n")
        assert installed_code()["mechanisms"]["decay"] != digest, name
        file.write_text(text)
    assert installed_code()["mechanisms"]["decay"] == digest


def test_code_json_is_the_same_wherever_the_study_lies(
    study: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (study / "mechanisms/decay.py").write_text("import torch\n")
    here = installed_code()
    study.rename(tmp_path / "elsewhere")
    monkeypatch.setenv(OWN, str(tmp_path / "elsewhere/mechanisms"))
    assert installed_code() == here


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "window",
            "",
            r"mechanisms/window\.py: 'window' is a mechanism of attnopt already; give the file another name",
        ),
        ("broken", "def f(:\n", r"mechanisms/broken\.py is no Python that can be read: invalid syntax"),
        ("broken", "a = '\0'", r"mechanisms/broken\.py is no Python that can be read"),
    ],
)
def test_a_mechanism_that_cannot_be_one_is_named(study: Path, name: str, text: str, expected: str) -> None:
    (study / f"mechanisms/{name}.py").write_text(text)
    with pytest.raises(UserError, match=expected):
        installed_code()


def test_the_report_depends_on_its_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    before = installed_code()["stages"]
    monkeypatch.setattr(installed, "sha256", lambda code, *templates: repr(templates))
    parts = installed_code()["stages"]
    assert "index.html.j2" in parts.pop("report")
    assert set(parts.values()) == {"()"}
    assert len(set(before.values())) == len(before)


def test_nothing_but_code_templates_and_assets_lies_in_the_package() -> None:
    """What else did would be missing from code.json."""
    others = [file for file in (ROOT / "attnopt").rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")]
    places = {file.relative_to(ROOT / "attnopt").parts for file in others if file.name != "README.md"}
    assert {parts for parts in places if parts[0] != "assets" and parts[-2:-1] != ("templates",)} == {("py.typed",)}
