"""The rulers one by one, the fallback without a high-water mark, and a GPU's; all together are tested in test_run.py."""

import subprocess
import sys
import time
from subprocess import PIPE
from types import SimpleNamespace

import pytest
import torch

from attnopt.bench import peak_memory as weigh
from attnopt.bench import rulers as memory
from attnopt.bench.subjects import Work

from .toys import Toy

MIB = 2**20


def test_sampled_resident_set_sees_a_block_that_is_gone_again(monkeypatch):
    monkeypatch.setattr(memory, "_can_reset", lambda: False)
    before = memory.resting()
    with memory.high_water() as peak:
        block = torch.ones(128 * MIB, dtype=torch.uint8)
        time.sleep(0.2)
        del block
    assert (peak.bytes - before) / MIB == pytest.approx(128, rel=0.1)


def test_high_water_forgets_what_was_held_before():
    if not memory._can_reset():
        pytest.skip("this kernel's high-water mark cannot be set back")
    block = torch.ones(128 * MIB, dtype=torch.uint8)
    del block
    before = memory.resting()
    with memory.high_water() as peak:
        torch.ones(64 * MIB, dtype=torch.uint8)
    assert (peak.bytes - before) / MIB == pytest.approx(64, rel=0.1)


def test_the_allocator_counts_what_was_out_at_once_and_what_stays():
    def run() -> torch.Tensor:
        kept = torch.ones(8 * MIB, dtype=torch.uint8)
        for _ in range(3):
            torch.ones(16 * MIB, dtype=torch.uint8)
        return kept

    kept, peak, held = memory.allocated(run)
    assert (len(kept), peak, held) == (8 * MIB, 24 * MIB, 8 * MIB)


def test_a_look_from_outside_sees_the_process_and_nothing_once_it_ended():
    with subprocess.Popen([sys.executable, "-c", "x = bytearray(64 << 20); print(flush=True); input()"], stdin=PIPE, stdout=PIPE) as other:  # fmt: skip
        other.stdout.readline()
        seen = memory.resident_of(other.pid) / MIB
        other.communicate(b"\n")
    assert 64 <= seen < 64 + 32
    assert memory.resident_of(other.pid) == 0


class Cuda:
    """torch.cuda's bookkeeping: a caching allocator that holds 10 MiB at first and has reserved 20."""

    def __init__(self):
        self.allocated, self.reserved = 10 * MIB, 20 * MIB
        self.most = [0, 0]

    def take(self, allocated: int, reserved: int) -> None:
        self.most = [max(self.most[0], self.allocated + allocated), max(self.most[1], self.reserved + reserved)]

    def install(self, monkeypatch) -> None:
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: setattr(self, "reserved", 12 * MIB))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: self.allocated)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: self.reserved)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: setattr(self, "most", [0, 0]))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: self.most[0])
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: self.most[1])


def test_a_gpus_peaks_are_the_allocators_above_rest(monkeypatch):
    gpu = Cuda()
    gpu.install(monkeypatch)
    gpu.take(500 * MIB, 500 * MIB)
    before = memory.resting(cuda=True)
    with memory.high_water(cuda=True) as peak:
        gpu.take(30 * MIB, 40 * MIB)
    assert (peak.bytes - before, peak.reserved) == (30 * MIB, 40 * MIB)


def test_the_memory_pass_on_a_gpu_asks_the_allocator_alone(monkeypatch):
    gpu = Cuda()
    gpu.install(monkeypatch)
    on_gpu = SimpleNamespace(cuda=True)
    work = Work(lambda _: gpu.take(30 * MIB, 40 * MIB))
    (fields,) = weigh._peak(work, Toy("variant"), "train", 1, on_gpu)
    assert (fields["peak_mib"], fields["peak_allocated_mib"], fields["peak_reserved_mib"]) == (30, 30, 40)
