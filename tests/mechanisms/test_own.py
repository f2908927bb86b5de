"""A user's own mechanisms: found where the command line stands in a study, and nowhere else."""

import os
import sys
from pathlib import Path

import pytest
from conftest import Workspace

from attnopt.core.code import OWN, use_own_mechanisms
from attnopt.core.errors import UserError
from attnopt.mechanisms import load_mechanism, mechanism_names
from attnopt.mechanisms.shared.catalogue import mechanisms_table
from attnopt.settings import load_settings

MINE = '''"""Nothing, times a factor."""

from attnopt.mechanisms.{parent} import {cls}


class Mine({cls}):
    class Options({cls}.Options):
        factor: float = 1.0
        """What nothing is multiplied by."""
'''


@pytest.fixture
def study(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The workspace as a study with mechanisms of its own, of which nobody was told yet."""
    (workspace.path / "mechanisms").mkdir()
    (workspace.path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.setenv(OWN, "unset")  # so that it is unset again at the end
    monkeypatch.delenv(OWN)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    write(workspace, "mine_found", MINE.format(parent="none", cls="NoAttention"))
    return workspace


def write(study: Workspace, name: str, text: str) -> None:
    (study.path / f"mechanisms/{name}.py").write_text(text)


def test_the_command_line_finds_it_and_a_library_does_not(study: Workspace) -> None:
    assert "mine_found" not in mechanism_names()
    with pytest.raises(ValueError, match="unknown mechanism 'mine_found'"):
        load_mechanism("mine_found")
    use_own_mechanisms(Path())
    assert os.environ[OWN] == str(study.path / "mechanisms")
    assert "mine_found" in mechanism_names()
    assert load_mechanism("mine_found").kind == "mine_found"
    assert "\nmine_found\n    Nothing, times a factor.\n" in mechanisms_table()


@pytest.mark.parametrize("missing", ["dvc.yaml", "params.yaml"])
def test_a_folder_that_is_no_study_is_not_looked_into(study: Workspace, missing: str) -> None:
    (study.path / missing).unlink()
    use_own_mechanisms(Path())
    assert OWN not in os.environ


def test_params_are_held_against_its_options(study: Workspace) -> None:
    use_own_mechanisms(Path())
    study.set(variants={"mine": "mine_found"}, mine={"factor": 2.0})
    assert load_settings().variant("mine").options.factor == 2.0
    study.set(mine={"factr": 2.0})
    with pytest.raises(UserError, match=r"unknown key 'mine.factr' \(did you mean 'factor'\?\)"):
        load_settings()
    study.set(variants={"mine": "mine_fond"})
    with pytest.raises(UserError, match=r"unknown mechanism 'mine_fond' \(did you mean mine_found\?\)"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("mine_fails", "1 / 0\n", r"mechanisms/mine_fails\.py: ZeroDivisionError: division by zero$"),
        ("mine_syntax", "def f(:\n", r"mechanisms/mine_syntax\.py: SyntaxError: invalid syntax"),
        ("mine_empty", "", r"mechanisms/mine_empty\.py must define one Mechanism, it defines 0$"),
        (
            "window",
            "",
            r"mechanisms/window\.py: 'window' is a mechanism of attnopt already; give the file another name$",
        ),
    ],
)
def test_one_that_is_wrong_is_named_in_one_line(study: Workspace, name: str, text: str, expected: str) -> None:
    write(study, name, text)
    use_own_mechanisms(Path())
    with pytest.raises(UserError, match=expected):
        load_mechanism(name)
    study.set(variants={"mine": name}, mine={})
    with pytest.raises(UserError, match=rf"^params\.yaml: variants\.mine: .*{expected}"):
        load_settings()


def test_a_change_makes_its_own_students_anew_alone(study: Workspace) -> None:
    from attnopt.training.jobs import training_jobs

    use_own_mechanisms(Path())
    study.set(variants={"mine": "mine_found"}, mine={})
    study.run("tokenize", "cache-logits")

    def keys() -> dict[str, str]:
        settings = load_settings()
        return {n: training_jobs(settings.variant(n), settings.teacher)[0].key for n in settings.variants}

    before = keys()
    write(study, "mine_found", MINE.format(parent="none", cls="NoAttention") + "# other\n")
    after = keys()
    assert {name for name in before if before[name] != after[name]} == {"mine"}
