"""What a mechanism remembers, and what can be done to any state: pick its sequences, and weigh it."""

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

State = Any
"""What a mechanism remembers of the tokens that it has seen: None before the first, and then whatever it returned.

It may be any nest of tuples, named tuples, lists and dicts that holds tensors with the batch as their first dimension,
and plain numbers that are the same for all sequences. That is enough for `select_rows` to pick and repeat sequences
(beam search) and for `measured_bytes` to weigh it. Its tensors own their memory: a view of the keys of a whole prompt
would keep the prompt alive.
"""


class Rows:
    """The state of a batch whose rows have seen different numbers of tokens: a list of states of batch 1."""

    def __init__(self, rows: list[State]):
        self.rows = rows

    def select(self, index: Tensor) -> "Rows":
        """The rows `index` (n,), in that order; a row may come several times."""
        return Rows([self.rows[i] for i in index.tolist()])


def one_row(state: State, b: int) -> State:
    """The state of sequence b alone, with a batch of 1; views of the given one."""
    return tree_map_only(Tensor, lambda t: t[b : b + 1], state)


def select_rows(state: State, index: Tensor) -> State:
    """The state of other sequences of the batch, as beam search and `generate` with several samples need it.

    Args:
        state: of B sequences; None stays None.
        index: (n,) which of them, in which order; a sequence may come several times.

    Returns: a state of n sequences; the given one is left as it was.
    """
    if isinstance(state, Rows):
        return state.select(index)
    return tree_map_only(Tensor, lambda t: t.index_select(0, index.to(t.device)), state)


def measured_bytes(state: State) -> int:
    """Bytes of memory that a state keeps alive: of each of its tensors the whole storage, each storage once."""
    if isinstance(state, Rows):
        return sum(measured_bytes(row) for row in state.rows)
    tensors = [t for t in tree_leaves(state) if isinstance(t, Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
