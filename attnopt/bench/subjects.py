"""What the bench measures, described so that a fresh process can load it: a model, or one layer's attention alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from attnopt import mechanisms
from attnopt.bench.params import BenchParams, Phase
from attnopt.core.device import resolve_device
from attnopt.mechanisms.base import Geometry, measured_bytes
from attnopt.teacher import model as teacher
from attnopt.teacher.params import TeacherParams


@dataclass(frozen=True)
class Setting:
    """How to compute, in this process."""

    batch: int
    decode_tokens: int
    dtype: torch.dtype
    device: torch.device

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


def settle_process(params: BenchParams) -> Setting:
    """Pin this process' threads and choose its device. Raises UserError where a GPU was asked for and there is none."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(params.cpu_threads())
    torch.manual_seed(0)
    device = resolve_device(params.device)
    return Setting(params.batch, params.decode_tokens, dtype_of(params, device), device)


def dtype_of(params: BenchParams, device: torch.device) -> torch.dtype:
    if params.dtype != "auto":
        return getattr(torch, params.dtype)
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def weight_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's parameters and buffers, each storage counted once."""
    return measured_bytes([*module.parameters(), *module.buffers()])


def _same(context: Any) -> Any:
    return context


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Work:
    """One phase at one length.

    Attributes:
        run: what is measured; gets a context, returns what it leaves behind.
        context: made once before, unmeasured, such as the decoding state after the context's tokens.
        copy: of the context, for every run; needed where `run` writes into it.
        tokens: a sample is the time of a run over this number.
    """

    run: Callable[[Any], Any]
    context: Callable[[], Any] = _nothing
    copy: Callable[[Any], Any] = _same
    tokens: int = 1


class Runner(Protocol):
    """A subject, loaded."""

    def work(self, phase: Phase, length: int) -> Work: ...

    def state_bytes(self, left: Any) -> int:
        """Of the decoding state that a prefill's run, or a decode's context, returned."""

    def declared_bytes(self, length: int) -> int: ...

    def weight_bytes(self) -> int:
        """Of parameters and buffers."""

    def is_synthetic(self, phase: Phase, length: int) -> bool:
        """Whether the phase needs more positions than the model has."""


class Subject(Protocol):
    """What to measure, described so that it can be sent to a fresh process."""

    @property
    def name(self) -> str: ...

    def load(self, setting: Setting) -> Runner: ...


@dataclass(frozen=True)
class Teacher:
    """The untouched model with SDPA softmax: the baseline of the level "model"."""

    params: TeacherParams
    name: str = "softmax"

    def load(self, setting: Setting) -> Runner:
        from attnopt.bench.model_runner import ModelRunner

        return ModelRunner(teacher.load_teacher(self.params)[0], setting)


@dataclass(frozen=True)
class Student:
    """A distilled student's folder."""

    path: Path
    name: str = "variant"

    def load(self, setting: Setting) -> Runner:
        from attnopt.bench.model_runner import ModelRunner
        from attnopt.student import files as delta

        return ModelRunner(delta.load_student(self.path), setting)


@dataclass(frozen=True)
class Operation:
    """One layer's mechanism alone, freshly drawn, on random q, k, v; `softmax` is SDPA, the baseline of that level."""

    kind: str
    geometry: Geometry
    options: dict[str, Any] = field(default_factory=dict)
    name: str = "variant"

    def load(self, setting: Setting) -> Runner:
        from attnopt.bench.operation_runner import OperationRunner

        cls = mechanisms.load_mechanism(self.kind)
        torch.manual_seed(0)
        return OperationRunner(cls(self.geometry, cls.Options.model_validate(self.options)), self.geometry, setting)
