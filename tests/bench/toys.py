"""Subjects of known cost, picklable, for the ruler's own tests."""

import os
import signal
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from attnopt.bench.model_runner import ModelRunner
from attnopt.bench.operation_runner import OperationRunner
from attnopt.bench.params import BenchParams
from attnopt.bench.work import Runner, Setting, Work
from attnopt.mechanisms import load_mechanism
from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, State
from attnopt.records.bench import Phase
from attnopt.student.attach import attach
from attnopt.student.swap import Swap

MIB = 2**20
QUICK = BenchParams(phases=["prefill"], threads=1, device="cpu", max_spread=1e9, min_seconds=0)
FEW = QUICK.model_copy(update={"min_iterations": 3})


@dataclass(frozen=True)
class Toy:
    """Sleeps `seconds` and holds `mib` for a moment at length 1, `length^exponent` times that at others.

    Attributes:
        outside: MiB that are held as well, behind the back of torch's allocator.
        fault: what happens instead, in phase `fails_in`.
    """

    name: str
    seconds: float = 0.0
    mib: float = 0.0
    outside: int = 0
    exponent: float = 0.0
    fault: Literal["memory", "allocator", "killed", "hangs", "broken"] | None = None
    fails_in: Phase = "prefill"

    def load(self, setting: Setting) -> "Toy":
        return self

    def work(self, phase: Phase, length: int) -> Work:
        fault = self.fault if phase == self.fails_in else None
        return Work(lambda _: self._fail(fault) if fault else self._cost(length))

    def _cost(self, length: int) -> None:
        times = length**self.exponent
        if self.mib:
            held = torch.ones(int(self.mib * times * MIB), dtype=torch.uint8)
        if self.outside:
            np.ones(self.outside * MIB, dtype=np.uint8)
        if self.seconds:
            time.sleep(self.seconds * times)
        if self.mib:
            del held

    def _fail(self, fault: str) -> None:
        if fault == "memory":
            raise MemoryError
        if fault == "allocator":
            torch.empty(2**60, dtype=torch.uint8)
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hangs":
            time.sleep(600)
        raise ZeroDivisionError("a toy broke")

    def state_bytes(self, left: Any) -> int:
        return 0

    def declared_bytes(self, length: int) -> int:
        return 0

    def weight_bytes(self) -> int:
        return 0

    def is_synthetic(self, phase: Phase, length: int) -> bool:
        return False


@dataclass(frozen=True)
class FailsLater(Toy):
    """A toy that is killed in its third run in a process.

    The memory pass has run it to warm up and to measure its peak by then, the latency pass to warm up and once more.
    """

    def work(self, phase: Phase, length: int) -> Work:
        return Work(self._third_fails)

    def _third_fails(self, _: None) -> None:
        runs.append(None)
        self._fail("killed") if len(runs) == 3 else self._cost(1)


runs: list[None] = []
"""Of this process."""


@dataclass(frozen=True)
class TinyGPT2:
    """A random GPT-2 of two layers and 64 positions, with SDPA softmax or a mechanism."""

    name: str
    kind: str | None = None

    def load(self, setting: Setting) -> Runner:
        config = GPT2Config(
            vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )
        model = GPT2LMHeadModel(config)
        model.set_attn_implementation("sdpa")
        if self.kind:
            attach(model, Swap(self.kind))
        return ModelRunner(model, setting)


class _SlowSoftmax(nn.Module):
    def __init__(self, softmax: Mechanism, seconds: float):
        super().__init__()
        self.softmax, self.seconds = softmax, seconds

    def forward(self, x: Inputs, state: State = None) -> Any:
        time.sleep(self.seconds)
        return self.softmax(x, state)

    def state_bytes(self, *args: Any) -> int:
        return self.softmax.state_bytes(*args)


@dataclass(frozen=True)
class Planted:
    """Softmax alone that also sleeps."""

    name: str
    seconds: float

    def load(self, setting: Setting) -> Runner:
        softmax = load_mechanism("softmax")
        geometry = Geometry(heads=2, kv_heads=1, head_dim=16, hidden=32, scaling=0.25)
        return OperationRunner(_SlowSoftmax(softmax(geometry, softmax.Options()), self.seconds), geometry, setting)


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
