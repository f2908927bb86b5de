"""The hardware that measurements depend on: named so that only another machine changes it."""

import re
from types import SimpleNamespace

import psutil
import pytest

from attnopt.core import machine as hardware


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
