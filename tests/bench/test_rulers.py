"""The rulers one by one, the fallback without a high-water mark, and a GPU's; all together: test_peak_memory.py."""

import subprocess
import sys
import time
from subprocess import PIPE

import pytest
import torch

from attnopt.bench import rulers

from .toys import MIB, Cuda


@pytest.mark.slow
def test_sampled_resident_set_sees_a_block_that_is_gone_again(monkeypatch):
    monkeypatch.setattr(rulers, "_has_high_water_mark", lambda: False)
    before = rulers.resting()
    with rulers.high_water() as peak:
        block = torch.ones(128 * MIB, dtype=torch.uint8)
        time.sleep(0.2)
        del block
    assert (peak.bytes - before) / MIB == pytest.approx(128, rel=0.1)


def test_high_water_forgets_what_was_held_before():
    if not rulers._has_high_water_mark():
        pytest.skip("this kernel's high-water mark cannot be set back")
    block = torch.ones(128 * MIB, dtype=torch.uint8)
    del block
    before = rulers.resting()
    with rulers.high_water() as peak:
        torch.ones(64 * MIB, dtype=torch.uint8)
    assert (peak.bytes - before) / MIB == pytest.approx(64, rel=0.1)


def test_the_allocator_counts_what_was_out_at_once_and_what_stays():
    def run() -> torch.Tensor:
        kept = torch.ones(8 * MIB, dtype=torch.uint8)
        for _ in range(3):
            torch.ones(16 * MIB, dtype=torch.uint8)
        return kept

    kept, peak, held = rulers.allocated(run)
    assert (len(kept), peak, held) == (8 * MIB, 24 * MIB, 8 * MIB)


def test_a_look_from_outside_sees_the_process_and_nothing_once_it_ended():
    with subprocess.Popen([sys.executable, "-c", "x = bytearray(64 << 20); print(flush=True); input()"], stdin=PIPE, stdout=PIPE) as other:  # fmt: skip
        other.stdout.readline()
        seen = rulers.resident_of(other.pid) / MIB
        other.communicate(b"\n")
    assert 64 <= seen < 64 + 32
    assert rulers.resident_of(other.pid) == 0


def test_a_gpus_peaks_are_the_allocators_above_rest(monkeypatch):
    gpu = Cuda()
    gpu.install(monkeypatch)
    gpu.take(500 * MIB, 500 * MIB)
    before = rulers.resting(cuda=True)
    with rulers.high_water(cuda=True) as peak:
        gpu.take(30 * MIB, 40 * MIB)
    assert (peak.bytes - before, peak.reserved) == (30 * MIB, 40 * MIB)


def test_asking_for_the_high_water_mark_does_not_set_it_back():
    if not rulers._has_high_water_mark():
        pytest.skip("this kernel's high-water mark cannot be set back")
    with rulers.high_water() as peak:
        block = torch.ones(64 * MIB, dtype=torch.uint8)
        held = rulers.resting()
        del block
        rulers._has_high_water_mark.cache_clear()
        assert rulers._has_high_water_mark()
    assert peak.bytes >= held
