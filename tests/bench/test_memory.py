"""The fallback for systems whose high-water mark cannot be set back; the mark itself is tested in test_run.py."""

import time

import pytest
import torch

from attnopt.bench import memory

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
