"""The site: nothing that a user can set is missing from it, every link leads somewhere, and a page needs no network."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from attnopt.mechanisms import load_mechanism, mechanism_names
from attnopt.settings import Settings

sys.path.append(str(ROOT / "docs" / "site"))
from pages import commands, equations, mechanisms, options, repository


def keys() -> list[str]:
    """Every key of params.yaml in full."""
    found: list[str] = []
    for name, field in Settings.model_fields.items():
        section = options.is_section(field.annotation)
        found += [f"{name}.{key}" for key in field.annotation.model_fields] if section else [name]
    return found


@pytest.fixture(scope="module")
def rows() -> dict[str, list[str]]:
    """Default, what it takes and meaning of every key on the page of options."""
    pattern = r'^\| <span id="(.+?)"></span>`.+?` \| (.*) \|$'
    found = re.findall(pattern, options.page(), re.MULTILINE)
    return {key: re.split(r"(?<!\\) \| ", cells) for key, cells in found}


@pytest.mark.parametrize("key", keys())
def test_every_key_has_its_row(rows: dict[str, list[str]], key: str) -> None:
    assert [bool(cell) for cell in rows[key]] == [True] * 3, "default, what it takes, meaning"


def test_a_default_and_what_the_study_says_are_told_apart(rows: dict[str, list[str]]) -> None:
    assert rows["corpus.block"][0] == "`128`<br>*the default study:* `512`"
    assert rows["corpus.block"][1] == "whole number ≥ 8"
    assert rows["state.share"][1] == "number > 0, ≤ 1 or `null`"
    assert rows["VARIANT.weights"][1] == "`teacher` or `random`"


@pytest.mark.parametrize("kind", mechanism_names())
def test_every_mechanism_has_its_section(kind: str) -> None:
    cls = load_mechanism(kind)
    text = "\n".join(mechanisms.parts(cls))
    assert f"## {kind} {{#{kind}}}" in text
    assert cls.source in text
    assert "**State.**" in text
    assert kind in ("nsa", "evict", "quantised") or 'class="equation"' in text
    for name, field in cls.Options.model_fields.items():
        assert f'<span id="{kind}.{name}"></span>`{name}` | ' in text
        assert field.description, f"{kind}.{name} has no docstring"


def test_every_command_is_there() -> None:
    from attnopt.cli import app

    text = commands.page()
    for command in app.registered_commands:
        assert command.callback
        name = command.name or command.callback.__name__.replace("_", "-")
        assert f"## `attnopt {name}`\n" in text


def test_an_equation_is_typeset_and_keeps_its_columns() -> None:
    told = equations.markdown("It is\n\n    S_t = a^T S_{t-1} - phi(q) . k'_j,   a <= 1\n\nwith k_s of `a_b`.")
    assert "S<sub>t</sub> = a<sup>T</sup> S<sub>t-1</sub> − φ(q) · k′<sub>j</sub>,</span>" in told
    assert "<span>a ≤ 1</span>" in told
    assert told.endswith("with k<sub>s</sub> of `a_b`.")


def test_links_lead_from_place_to_place_and_code_is_left_alone() -> None:
    text = "[a](../attnopt/ops/growing.py) [b](../README.md#licence) [c](../attnopt/ops) `[d](../README.md)` [e](no.md)"
    assert repository.rewritten(text, "docs/x.md") == (
        "[a](repository/attnopt/ops/growing.py.md) [b](repository/README.md#licence) "
        "[c](repository/attnopt/ops/README.md) `[d](../README.md)` [e](no.md)"
    )


def test_the_first_page_has_the_readmes_sections() -> None:
    text = repository.markdown_of("docs/index.md")
    assert "<!-- from" not in text
    assert "make repro" in text
    with pytest.raises(KeyError):
        repository.section("README.md", "No such heading")


def build(project: Path, site: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(project / "mkdocs.yml"), "-d", str(site)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_the_site_is_built_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    built = build(ROOT, tmp_path)
    assert built.returncode == 0, built.stderr
    for name in ("index", "options", "mechanisms", "commands", "api", "repository/attnopt/ops/growing.py"):
        page = (tmp_path / f"{name}.html").read_text()
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"?([^\s\">]+)", page)
        assert loaded
        assert not [url for url in loaded if re.match(r"(https?:)?//", url)], name


@pytest.mark.slow
def test_links_that_lead_nowhere_fail_the_build(tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(ROOT / "docs", project / "docs")
    for path in ROOT.iterdir():
        if path.name not in ("docs", "build"):
            (project / path.name).symlink_to(path)
    (project / "docs/broken.md").write_text(
        "# B\n\n[a](nowhere.md) [b](convert.md#nowhere) [c](../attnopt/nowhere.py)\n"
    )
    built = build(project, tmp_path / "site")
    assert built.returncode == 1
    for link in ("'nowhere.md'", "'convert.md#nowhere'", "'../attnopt/nowhere.py'"):
        assert f"Doc file 'broken.md' contains a link {link}" in built.stderr, built.stderr
    assert built.stderr.count("Doc file 'broken.md'") == 3, built.stderr
