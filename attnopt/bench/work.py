"""The words of the bench: a subject is loaded into a runner, whose work at one phase and length is measured."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from attnopt.bench.params import BenchParams
from attnopt.core.device import resolve_device
from attnopt.mechanisms.base import measured_bytes
from attnopt.records.bench import Phase


@dataclass(frozen=True)
class Setting:
    """How to compute, in this process.

    Attributes:
        batch: sequences side by side.
        decode_tokens: tokens that one sample of the phase decode generates.
        dtype: of weights and activations.
        compiles: whether decoding steps are fused.
    """

    batch: int
    decode_tokens: int
    dtype: torch.dtype
    device: torch.device
    compiles: bool = False

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


def settle_process(params: BenchParams) -> Setting:
    """Make this process as every measurement needs it: quiet libraries, pinned threads, seed 0; and choose its device.

    Raises: UserError where a GPU was asked for and there is none.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(params.cpu_threads())
    torch.manual_seed(0)
    device = resolve_device(params.device)
    return Setting(params.batch, params.decode_tokens, dtype_of(params, device), device, params.compile)


def dtype_of(params: BenchParams, device: torch.device) -> torch.dtype:
    """The precision that `params` ask for; `auto` is bfloat16 on a GPU and float32 elsewhere."""
    if params.dtype != "auto":
        return getattr(torch, params.dtype)
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def weight_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's parameters and buffers, each storage counted once."""
    return measured_bytes([*module.parameters(), *module.buffers()])


def _no_context() -> None:
    return None


def _same(context: Any) -> Any:
    return context


@dataclass(frozen=True)
class Work:
    """One phase at one length, ready to run as often as wanted.

        context = work.context()
        for _ in range(10):
            work.run(work.copy(context))

    Attributes:
        run: what is measured. It is called with a context and returns what it leaves behind, such as the decoding
            state after a prefill.
        context: makes what `run` starts from, unmeasured, such as the decoding state after the context's tokens.
        copy: a copy of the context, made for every run; a real one where `run` writes into its context.
        tokens: a sample is the time of one run divided by this number.
    """

    run: Callable[[Any], Any]
    context: Callable[[], Any] = _no_context
    copy: Callable[[Any], Any] = _same
    tokens: int = 1


class Runner(Protocol):
    """A subject that is loaded into this process, and can be put to work."""

    def work(self, phase: Phase, length: int) -> Work:
        """The work of one phase after, or over, a context of `length` tokens, for all sequences of the batch."""

    def state_bytes(self, left: Any) -> int:
        """Bytes of a decoding state, of the whole batch.

        Args:
            left: what the run of a prefill returned, or what `context` of a decode's work did.
        """

    def declared_bytes(self, length: int) -> int:
        """Bytes of the same state after `length` tokens, as the mechanism itself declares them."""

    def weight_bytes(self) -> int:
        """Bytes of parameters and buffers, as they were loaded."""

    def is_synthetic(self, phase: Phase, length: int) -> bool:
        """Whether the phase needs more positions than the model has, so that only its cost means anything."""


class Subject(Protocol):
    """What to measure, described so that it can be sent to a fresh process: small and picklable.

    A class of one's own does where it has a name and can load itself:

        @dataclass(frozen=True)
        class Mine:
            name: str = "mine"

            def load(self, setting: Setting) -> Runner:
                return OperationRunner(MyLayer(), GEOMETRY, setting)
    """

    @property
    def name(self) -> str:
        """Of the subject in its plan: "variant" or, for the baseline, "softmax"."""

    def load(self, setting: Setting) -> Runner:
        """Load it into this process, on the setting's device and in its precision."""
