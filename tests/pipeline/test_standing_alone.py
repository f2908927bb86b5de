"""The wheel in an environment of its own: `attnopt init`, and a study that runs there without a checkout.

The environment sees the packages of the one that the tests run in, but for attnopt.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import PARAMS, ROOT, Workspace, every_stage_in_seconds, small_world

from attnopt.core.files import read_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
VARIANTS = {"window": "window", "mine": "recency"}
TRAINED = [f"distill@{name}" for name in VARIANTS]


@dataclass
class Installed:
    """An environment that holds the wheel.

    Attributes:
        sdist, wheel: the two packages.
    """

    folder: Path
    sdist: Path
    wheel: Path

    def run(self, where: Path, *command: str) -> str:
        """What a command prints, as a shell finds it in which this environment is active."""
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        env = bare_environment() | {"PATH": path, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, timeout=560, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def repro(self, study: Path, *targets: str) -> list[str]:
        """The stages that `dvc repro` runs, but for the two that look each time."""
        told = self.run(study, "python", "-m", "dvc", "repro", *targets)
        ran = re.findall(r"^Running stage '(.+)':", told, re.MULTILINE)
        assert ran.pop(0) == "code"
        return [stage for stage in ran if stage != "bench"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """sdist and wheel, the second built from the first, and installed."""
    folder = tmp_path_factory.mktemp("built")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if not name.startswith(("tests/", "reports/", "docs/")) and (ROOT / name).is_file():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "tree" / name).write_bytes((ROOT / name).read_bytes())
    sdist = folder / built(folder / "tree", "build_sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    wheel = folder / built(folder / sdist.name.removesuffix(".tar.gz"), "build_wheel")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], env=bare_environment(), check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # no .pth in there is read, and so the checkout, installed as editable, is not found
    (site / "tests.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return Installed(folder / "venv", sdist, wheel)


def bare_environment() -> dict[str, str]:
    """Without what would make a checkout visible that lies elsewhere."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "DVC_", "ATTNOPT_"))}


def built(tree: Path, what: str) -> str:
    command = [sys.executable, "-c", BUILD, what, str(tree.parent)]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=True).stdout.split()[-1]


def shrink(study: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The study with a tiny world in place of the bundled one, and CONTRIBUTING.md's mechanism as the user's own."""
    block = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert block
    (study / "mechanisms/recency.py").write_text(block[1])
    small = small_world(tiny, study, monkeypatch)
    small.params.write_text(
        PARAMS.replace("  softmax: softmax\n  none: none\n", "  window: window\n").split("softmax:")[0]
    )
    small.set(
        variants=VARIANTS,
        mixes={},
        controls=[],
        window={"window": 8},
        mine={},
        distill={"steps": 2},
    )
    every_stage_in_seconds(small)
    return small


def test_a_study_runs_on_the_wheel_and_runs_again_what_changes(
    installed: Installed, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = installed.run(tmp_path, "python", "-c", "import attnopt, stages; print(attnopt.__file__)")
    package = Path(where.strip()).parent
    assert package.is_relative_to(installed.folder)
    installed.run(tmp_path, "attnopt", "init", "my-study")
    study = tmp_path / "my-study"
    shrink(study, tiny, monkeypatch)
    ran = installed.repro(study)
    assert sorted(ran) == sorted(["tokenize", "cache-logits", *TRAINED, "search", "evaluate", "sample", "report"])
    assert set(read_json(study / "reports/metrics.json")) == set(VARIANTS)
    lock = (study / "dvc.lock").read_bytes()
    assert installed.repro(study) == []
    assert (study / "dvc.lock").read_bytes() == lock

    own = study / "mechanisms/recency.py"
    own.write_text(own.read_text().replace("rate: Annotated", "pace: float = 1.0\n        rate: Annotated"))
    assert installed.repro(study, *TRAINED) == ["distill@mine"]

    other = package / "mechanisms/window.py"  # as a new version of the package would have it
    other.write_text(other.read_text() + "\nADDED = True\n")
    assert installed.repro(study, *TRAINED) == ["distill@window"]


def test_the_packages_hold_what_a_study_needs(installed: Installed) -> None:
    wheel = set(zipfile.ZipFile(installed.wheel).namelist())
    project = {f"attnopt/assets/project/studies/{file.name}" for file in (ROOT / "studies").glob("*.yaml")}
    beside = {"attnopt/py.typed", "attnopt/report/render/templates/index.html.j2", "stages/distill.py"}
    assets = {file.relative_to(ROOT).as_posix() for file in (ROOT / "attnopt/assets").rglob("*") if file.is_file()}
    assert wheel >= project | beside | assets | {"attnopt/assets/project/dvc.yaml"}
    assert not [name for name in wheel if name.startswith(("tests", "benchmarks", "docs"))]
    assert "Provides-Extra: gguf" in zipfile.ZipFile(installed.wheel).read(metadata_of(wheel)).decode()
    assert installed.run(installed.folder, "attnopt", "--version") == f"attnopt {installed.wheel.name.split('-')[1]}\n"


def metadata_of(wheel: set[str]) -> str:
    return next(name for name in wheel if name.endswith(".dist-info/METADATA"))
