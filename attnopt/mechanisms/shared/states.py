"""What a mechanism remembers, and what can be done to any state: pick its sequences, copy it, and weigh it."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from attnopt.ops.growing import Tokens

State = Any
"""What a mechanism remembers of the tokens that it has seen: None before the first, and then whatever it returned.

It may be any nest of tuples, named tuples, lists and dicts that holds tensors with the batch as their first dimension,
`Tokens` (ops/growing.py) where it keeps all tokens, and plain numbers that are the same for all sequences. That is
enough for `select_rows` to pick and repeat sequences (beam search) and for `measured_bytes` to weigh it. Its tensors
own their memory: a view of the keys of a whole prompt would keep the prompt alive.

It belongs to whoever holds it, who may hand it back any number of times, in any order, with any tokens. A call may
write into its memory only where no state that was returned before has anything to read: behind the last token of
`Tokens` whose memory nobody else has appended to.
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
    return _mapped(state, lambda t: t.index_select(0, index.to(t.device)), lambda tokens: tokens.select(index))


def with_room(state: State) -> State:
    """The state as decoding has it in its midst: `Tokens` in memory of their own and with room for more.

    A prefill leaves none, so the first step after it copies all tokens and those after it do not. What is no `Tokens`
    is shared with the given state.
    """
    if isinstance(state, Rows):
        return Rows([with_room(row) for row in state.rows])
    return _mapped(state, lambda t: t, Tokens.with_room)


def _mapped(state: State, tensor: Callable[[Tensor], Tensor], tokens: Callable[[Tokens], Tokens]) -> State:
    """The nest with its tensors and its `Tokens` each replaced by what their function gives."""

    def new(part: Any) -> Any:
        if isinstance(part, Tokens):
            return tokens(part)
        return tensor(part) if isinstance(part, Tensor) else part

    return tree_map(new, state, is_leaf=lambda part: isinstance(part, Tokens))


def measured_bytes(state: State) -> int:
    """Bytes of memory that a state keeps alive: of each of its tensors the whole storage, each storage once.

    The room behind `Tokens` is in it, which is none after a prefill and in decoding up to as much again.
    """
    if isinstance(state, Rows):
        return sum(measured_bytes(row) for row in state.rows)
    tensors = [t for t in tree_leaves(state) if isinstance(t, Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def filled_bytes(state: State) -> int:
    """Bytes of what a state remembers: of the numbers in its tensors, whatever memory lies behind or between them."""
    if isinstance(state, Rows):
        return sum(filled_bytes(row) for row in state.rows)
    return sum(t.numel() * t.itemsize for t in tree_leaves(state) if isinstance(t, Tensor))
