"""Terms of the training loss that depend on what a call saw, as a router's load: handed up, not kept on `self`."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_open: ContextVar[list[Tensor] | None] = ContextVar("attnopt_extra_loss", default=None)


@contextmanager
def training_step() -> Iterator[list[Tensor]]:
    """A forward pass of training: what mechanisms add within it is in the list, to be added to the loss.

    Models stay in eval mode while they learn, as dropout would not be the teacher's; so it is this that tells a
    mechanism that it learns.
    """
    terms: list[Tensor] = []
    token = _open.set(terms)
    try:
        yield terms
    finally:
        _open.reset(token)


def is_training() -> bool:
    """Whether this call is a part of a training step."""
    return _open.get() is not None


def add_loss(term: Tensor) -> None:
    """Add a scalar to the loss of the training step; outside of one it is dropped."""
    if (terms := _open.get()) is not None:
        terms.append(term)
