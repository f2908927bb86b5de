"""Decoding steps fused by torch.compile: what a mechanism names in `compiles`, one program for all its layers."""

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import torch

from attnopt.core.errors import UserError
from attnopt.mechanisms.base import Mechanism


def compile_steps(mechanisms: Iterable[Mechanism]) -> int:
    """Let mechanisms and their parts run their `compiles` methods fused, in place; what has none stays as it is.

    The first step of each kind compiles, which takes seconds. Inputs keep their shapes from step to step where a state
    is constant, or a window that is full. Outputs agree with the eager ones up to rounding.

    Returns: how many mechanisms have something that is compiled now.

    Raises:
        UserError: where torch.compile finds no compiler.
    """
    every = [m for mechanism in mechanisms for m in mechanism.modules() if isinstance(m, Mechanism)]
    chosen = [mechanism for mechanism in every if mechanism.compiles]
    if chosen:
        _probe()
    for mechanism in chosen:
        for name in mechanism.compiles:
            vars(mechanism)[name] = partial(_compiled(type(mechanism), name), mechanism)  # type: ignore[arg-type]
    return len(chosen)


@cache
def _compiled(cls: Any, name: str) -> Callable[..., Any]:
    """On a CPU one thread computes a step: a step is too short for several to be woken for each of its loops."""
    return torch.compile(getattr(cls, name), fullgraph=True, dynamic=False, options={"cpp.threads": 1})


@cache
def _probe() -> None:
    try:
        torch.compile(lambda x: x.exp() + 1, fullgraph=True)(torch.zeros(8))
    except Exception as error:  # inductor has no class of its own for a missing compiler
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"compile: torch.compile does not work on this machine: {reason}") from None
