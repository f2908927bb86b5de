"""The hardware as a dependency: the same machine writes the same file, another one another file and a word about it."""

import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from attnopt.core import machine as hardware
from attnopt.core.paths import MACHINE
from stages import machine

FOUND = {"cpu": "Sparc", "cores": 4, "ram_gib": 8, "gpus": []}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_fingerprint_is_hardware_alone():
    found = hardware.machine_fingerprint()
    assert found.keys() == {"cpu", "cores", "ram_gib", "gpus"}
    assert found == hardware.machine_fingerprint()
    assert found["cores"] >= 1
    assert re.match(r".+, \d+ cores, \d+ GiB", hardware.machine_line(found))


@pytest.mark.parametrize(("visible", "rounded"), [(15.5, 16), (15.6, 16), (23.49, 24), (23.5, 24), (125.7, 128)])
def test_ram_is_what_is_built_in_whatever_the_kernel_keeps(monkeypatch, visible, rounded):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=int(visible * 2**30)))
    assert hardware.machine_fingerprint()["ram_gib"] == rounded


def test_gpus_are_named_with_their_memory(tmp_path, monkeypatch):
    told = "printf 'NVIDIA H200, 143771\\nGrid, virtual, [N/A]\\n'"
    monkeypatch.setattr(hardware, "GPU_QUERY", ["sh", "-c", told])
    assert hardware.gpus() == ["NVIDIA H200, 140 GiB", "Grid, virtual, unknown GiB"]
    for lacking in (["sh", "-c", "exit 9"], [str(tmp_path / "nvidia-smi")]):
        monkeypatch.setattr(hardware, "GPU_QUERY", lacking)
        assert hardware.gpus() == []


def test_the_same_machine_leaves_the_file_alone_and_another_says_so(here, monkeypatch, capsys):
    monkeypatch.setattr(machine, "machine_fingerprint", lambda: FOUND)
    machine.run()
    assert json.loads(MACHINE.read_text()) == FOUND
    written = MACHINE.stat().st_mtime_ns
    machine.run()
    assert MACHINE.stat().st_mtime_ns == written
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(machine, "machine_fingerprint", lambda: FOUND | {"gpus": ["H200, 140 GiB"]})
    machine.run()
    assert json.loads(MACHINE.read_text())["gpus"] == ["H200, 140 GiB"]
    told = capsys.readouterr().err
    assert "Sparc, 4 cores, 8 GiB\n" in told
    assert "Sparc, 4 cores, 8 GiB; H200, 140 GiB\n" in told


def test_a_damaged_file_is_written_anew(here, monkeypatch):
    monkeypatch.setattr(machine, "machine_fingerprint", lambda: FOUND)
    MACHINE.parent.mkdir()
    MACHINE.write_text("{")
    machine.run()
    assert json.loads(MACHINE.read_text()) == FOUND


def test_the_stage_needs_no_torch():
    code = "import sys; from stages import machine; print('torch' in sys.modules or 'pydantic' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_dvc_measures_again_on_other_hardware_only(here):
    """The pipeline's own stage `machine` before a stand-in for the bench, under DVC."""
    git, dvc = shutil.which("git"), shutil.which("dvc")
    if not (git and dvc):
        pytest.skip("needs git and dvc on the path")
    stage = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]["machine"]
    stand_in = {"cmd": "cat data/machine.json > measured", "deps": ["data/machine.json"], "outs": ["measured"]}
    stage |= {"cmd": "mkdir -p data && cp hardware data/machine.json", "deps": []}
    (here / "dvc.yaml").write_text(json.dumps({"stages": {"machine": stage, "bench": stand_in}}))
    (here / "hardware").write_text("one")

    def ran() -> bool:
        out = subprocess.run([dvc, "repro"], cwd=here, capture_output=True, text=True, check=True).stdout
        return "Running stage 'bench'" in out

    subprocess.run([git, "init", "-q"], cwd=here, check=True)
    subprocess.run([dvc, "init", "-q"], cwd=here, check=True)
    assert [ran(), ran()] == [True, False]
    (here / "hardware").write_text("two")
    assert [ran(), ran()] == [True, False]
    assert (here / "measured").read_text() == "two"
    subprocess.run([dvc, "freeze", "-q", "machine"], cwd=here, check=True)
    (here / "hardware").write_text("three")
    assert not ran()
