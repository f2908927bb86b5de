"""Activation checkpointing: what a forward pass keeps for its backward pass is let go, and computed again there.

Chen et al. 2016, https://arxiv.org/abs/1604.06174, by torch.utils.checkpoint.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from attnopt.mechanisms.shared.extra_loss import training_step


@contextmanager
def recomputed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Calls of these modules within the context keep their inputs alone, and run again in the backward pass.

    with recomputed(blocks_of(student)):
        loss = student(ids, labels=ids).loss
    loss.backward()  # each block runs once more

    The results are the same to the bit. No module is to lie in another one.
    """
    own = [(module, vars(module).get("forward")) for module in modules]
    for module, _ in own:
        again = partial(checkpoint, module.forward, use_reentrant=False, context_fn=_as_before)
        vars(module)["forward"] = again
    try:
        # Stopped early, the second run would pass by the hooks by which sharded modules let go of their weights.
        with set_checkpoint_early_stop(False):
            yield
    finally:
        for module, forward in own:
            del vars(module)["forward"]
            if forward is not None:
                vars(module)["forward"] = forward


def _as_before() -> tuple[AbstractContextManager, AbstractContextManager]:
    """Of the first run and of the second, which is a part of a training step as well; its terms are in the loss."""
    return nullcontext(), training_step()
