"""A params.yaml that was made to run, to leave its folder or to fill the memory is refused in one line."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Workspace

from attnopt.core.errors import UserError
from attnopt.core.foreign import printable, read_yaml
from attnopt.settings import load_settings
from attnopt.tools import study

TAGS = [
    "!!python/object/apply:os.system ['touch hacked']",
    "!!python/name:os.system",
    "!!python/object/new:subprocess.Popen [[touch, hacked]]",
    "!os.system touch hacked",
]


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_makes_no_object(workspace: Workspace, tag: str) -> None:
    workspace.params.write_text(workspace.params.read_text() + f"report: {tag}\n")
    with pytest.raises(UserError, match=r"params\.yaml is not readable YAML: could not determine a constructor"):
        load_settings()
    assert not Path("hacked").exists()


@pytest.mark.parametrize("tag", TAGS)
def test_nor_does_one_in_a_study(workspace: Workspace, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "STUDIES", Path("studies"))
    Path("studies").mkdir()
    Path("studies/mini.yaml").write_text(workspace.params.read_text() + f"report: {tag}\n")
    before = workspace.params.read_text()
    with pytest.raises(UserError, match="is not readable YAML"):
        study.apply_study("mini")
    assert not Path("hacked").exists()
    assert workspace.params.read_text() == before


def test_aliases_that_stand_for_billions_are_refused_at_once(workspace: Workspace) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(UserError, match=r"its aliases stand for 1\.\d+e\+10 values"):
        read_yaml("\n".join(lines), "params.yaml")
    assert read_yaml("a: &a {x: 1}\nb: *a\n", "params.yaml") == {"a": {"x": 1}, "b": {"x": 1}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &a [*a]", "an anchor contains itself"),
        ("a: &a {b: *a}", "an anchor contains itself"),
        ("a: " + "[" * 20_000, "it is nested too deeply"),
        ("a: " + "{b: " * 20_000, "it is nested too deeply"),
        ("a: 2026-99-99", "month must be in 1..12"),
        ("a: " + "9" * 5000, "limit"),
        ("a: 'b", "found unexpected end of stream"),
        ("a: \x1b]0;hacked\x07", "special characters are not allowed"),
    ],
)
def test_what_cannot_be_read_is_one_line(text: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        read_yaml(text, "params.yaml")
    assert "\n" not in str(caught.value)


BAD = [
    "../x",
    "/etc/x",
    "a/b",
    "..",
    ".hidden",
    "--again",
    "x; touch hacked",
    "$(touch hacked)",
    "a b",
    "a\nb",
    "é",
    "",
]


@pytest.mark.parametrize("section", ["variants", "mixes"])
@pytest.mark.parametrize("name", [*BAD, "x" * 65])
def test_a_name_cannot_lead_out_of_its_folder_or_into_a_shell(workspace: Workspace, name: str, section: str) -> None:
    if section == "variants":
        workspace.set(variants={name: "none"}, **{name: {}})
    else:
        workspace.set(mixes={name: {"layers": {0: "none"}}})
    with pytest.raises(UserError, match=f"^params.yaml: {section}: .* is no name: a name is up to 64 letters"):
        load_settings()


@pytest.mark.parametrize("name", ["../params", "/etc/passwd", "..", "mini/../../params", ""])
def test_a_study_s_name_cannot_either(workspace: Workspace, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "STUDIES", Path("studies"))
    Path("studies").mkdir()
    Path("studies/mini.yaml").write_text(workspace.params.read_text())
    with pytest.raises(UserError, match="unknown study"):
        study.apply_study(name)


@pytest.mark.parametrize("kind", ["os:system", "os.system", "../none", "base", "_hidden", "shared", "none.os"])
def test_a_kind_imports_nothing_but_a_mechanism(workspace: Workspace, kind: str) -> None:
    workspace.set(variants={"none": kind})
    with pytest.raises(UserError, match=r"variants\.none: unknown mechanism"):
        load_settings()


def test_control_characters_in_a_message_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b]52;c;aGk=\x07\x9b31m\tb\n") == "a�]52;c;aGk=��31m\tb\n"
    script = "from attnopt.cli import _end; _end('a\\x1b[2Jb\\nc', 2)"
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, "attnopt: a�[2Jb c\n")


@pytest.mark.slow
def test_a_name_in_params_yaml_reaches_no_shell_through_dvc(tmp_path: Path) -> None:
    """DVC interpolates params.yaml into dvc.yaml before any of our code runs."""
    pipeline = (ROOT / "dvc.yaml").read_text()
    assert "${" not in "".join(line for line in pipeline.splitlines() if "cmd:" in line)
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  distill:\n    foreach: ${variants}\n    do:\n"
        + "".join(f"    {line}\n" for line in pipeline.splitlines() if "cmd: attnopt distill" in line)
    )
    (tmp_path / "params.yaml").write_text("variants:\n  'x; touch hacked': none\n'x; touch hacked': {}\nseeds: [0]\n")
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    ended = subprocess.run([*dvc, "repro"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "is no name" in ended.stderr
    assert not (tmp_path / "hacked").exists()
