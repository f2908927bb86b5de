"""The contract of a mechanism.

A mechanism maps queries, keys and values of one layer to that layer's attention output. It is causal, and what it
remembers of the past is a state that goes in and comes out. Shapes, used as suffixes on tensor names where it helps:

    B batch   H query heads   G key/value heads (H is a multiple of G)   T new tokens   S seen + new tokens
    D head dimension   C hidden width   F features
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

State = Any
"""None (nothing seen), or any nest (tuple, list, dict) of tensors with the batch first and of plain numbers."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What a layer tells its mechanism about itself.

    Attributes:
        scaling: the factor on q . k before the softmax; D^-0.5 in most models.
        rotary: whether q and k arrive with rotary positions applied.
    """

    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    scaling: float
    layer: int = 0
    rotary: bool = False


@dataclass(frozen=True)
class Inputs:
    """New tokens of one layer.

    Attributes:
        q: (B, H, T, D). k, v: (B, G, T, D), key/value heads not repeated.
        hidden: (B, T, C) the layer's input, for mechanisms with gates; None where nobody has it.
        keep: (B, T) bool, False where a token is padding; None where none is.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    hidden: Tensor | None = None
    keep: Tensor | None = None

    def map(self, f: Callable[[Tensor, int], Tensor]) -> "Inputs":
        """A copy with f(tensor, time dimension) applied to q, k, v and hidden; keep is dropped."""
        hidden = None if self.hidden is None else f(self.hidden, 1)
        return Inputs(f(self.q, 2), f(self.k, 2), f(self.v, 2), hidden)

    def slice(self, start: int | None = None, stop: int | None = None) -> "Inputs":
        """The tokens start:stop, `keep` included."""
        part = self.map(lambda t, dim: t[(slice(None),) * dim + (slice(start, stop),)])
        return Inputs(part.q, part.k, part.v, part.hidden, None if self.keep is None else self.keep[:, start:stop])


SHORT = 192
"""Tokens up to which a (T, T) matrix of weights is less work on a CPU than the forms that stream."""


class MechanismOptions(BaseModel):
    """Options of a mechanism: frozen, keyword-only, every default runnable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Mechanism(nn.Module):
    """Base of all mechanisms. A new one is one file in this package: a subclass that sets the class attributes and
    defines `extend`, `reference` and `state_bytes`. Its `kind` is the file's name.

    Randomness at construction comes from torch's global generator, which the caller seeds; what is drawn is a buffer.
    Padding, and rows that have seen different numbers of tokens, are handled here: `extend` never meets them.
    """

    kind: ClassVar[str]
    """The file's name; filled in by the registry."""
    source: ClassVar[str]
    """URL of the paper or code that defines it."""
    growth: Literal["constant", "window", "linear"]
    """How the state grows with the tokens seen."""
    cost: ClassVar[str] = ""
    """Work per token in the letters above, for `attnopt mechanisms`."""
    control: ClassVar[Literal["leaks"] | None] = None
    """Set on negative controls, which never enter a ranking."""
    random_features: ClassVar[str | None] = None
    """The option that says how many random features it draws; None where it draws none."""
    normalised: bool = True
    """Whether the output is an average of values, so that v = 1 gives out = 1."""
    dense_weights: bool = False
    """Whether every token up to the present one has a weight of its own above zero, in an output linear in v: then
    the weights can be matched to the teacher's."""
    working: Literal["linear", "quadratic"] = "linear"
    """How the memory of a training pass grows with the length of the sequence."""

    class Options(MechanismOptions):
        pass

    def __init__(self, geometry: Geometry, options: Any):
        super().__init__()
        self.geometry = geometry
        self.options = options

    def forward(self, x: Inputs, state: State = None, keeps_state: bool = True) -> tuple[Tensor, State]:
        """Attention output (B, H, T, D) for the new tokens, and the state after them; padded positions give zeros.

        Args:
            keeps_state: without it a whole sequence may be computed in a form that leaves no state, as in training.
        """
        ragged = isinstance(state, Rows) or (x.keep is not None and not bool(x.keep.all()))
        if ragged:
            return self._extend_rows(x, state)
        if keeps_state or state is not None:
            return self.extend(x, state)
        return (self.parallel(x) if x.q.shape[2] <= SHORT else self.extend(x)[0]), None

    def extend(self, x: Inputs, state: State = None) -> tuple[Tensor, State]:
        """Whole sequence, chunk and single step in one: any T >= 1, any state, no padding.

        Args:
            x: the new tokens; `x.keep` is to be ignored.
            state: what an earlier call returned, or None.
        Returns: out (B, H, T, D) in q's dtype, and the new state. The given state is left as it was.
        """
        raise NotImplementedError

    def parallel(self, x: Inputs) -> Tensor:
        """The output (B, H, T, D) for a whole sequence of up to `SHORT` tokens whose state nobody wants: a form of its
        own, such as one (T, T) matrix of weights, where that is faster."""
        return self.extend(x)[0]

    def reference(self, x: Inputs) -> Tensor:
        """The same output (B, H, T, D) for a whole sequence, by an obvious loop over tokens; differentiable."""
        raise NotImplementedError

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Bytes of the state after `length` tokens of `dtype`."""
        raise NotImplementedError

    def fit(self, x: Inputs) -> None:
        """Start close to the teacher: set parameters from the teacher's own q, k, v of this layer (no gradient)."""

    def penalty(self) -> Tensor | None:
        """A term to add to the training loss (such as L1 on coefficients); its weight is an option."""
        return None

    def coefficients(self) -> Mapping[str, Tensor]:
        """Named small tensors worth plotting over training, such as mask weights: each (heads or 1, n)."""
        return {}

    def pruned(self, threshold: float) -> "Mechanism | None":
        """A copy without the parts whose coefficients are under the threshold in all heads; None where none can go."""
        return None

    @classmethod
    def limit(cls, length: int) -> Any | None:
        """Options at which it equals softmax on sequences up to `length`; None where there are none."""
        return None

    @classmethod
    def conformance_options(cls) -> dict[str, Any]:
        """Option sets, by name, that together exercise each branch and backend: what the conformance suite runs."""
        return {"default": cls.Options()}

    def _extend_rows(self, x: Inputs, state: State) -> tuple[Tensor, "Rows"]:
        """Each row on its own, padding cut out: as slow as it is obvious, and right for every mechanism."""
        batch, _, tokens, _ = x.q.shape
        states = state.rows if isinstance(state, Rows) else [_row(state, b) for b in range(batch)]
        if len(states) != batch:
            raise ValueError(f"the state holds {len(states)} sequences, the input {batch}")
        outs, after = [], []
        for b, row_state in enumerate(states):
            kept = x.keep[b].nonzero()[:, 0] if x.keep is not None else torch.arange(tokens, device=x.q.device)
            out = x.q.new_zeros((1, *x.q.shape[1:3], x.v.shape[-1]))
            if len(kept):
                row_out, row_state = self.extend(x.map(partial(_pick, b, kept)), row_state)
                out = out.index_copy(2, kept, row_out)
            outs.append(out)
            after.append(row_state)
        return torch.cat(outs), Rows(after)


class Rows:
    """The state of a batch whose rows have seen different numbers of tokens: one state of batch 1 each."""

    def __init__(self, rows: list[State]):
        self.rows = rows

    def select(self, index: Tensor) -> "Rows":
        return Rows([self.rows[i] for i in index.tolist()])


def _pick(b: int, kept: Tensor, t: Tensor, dim: int) -> Tensor:
    return t[b : b + 1].index_select(dim, kept)


def _row(state: State, b: int) -> State:
    return tree_map_only(Tensor, lambda t: t[b : b + 1], state)


def select_rows(state: State, index: Tensor) -> State:
    """The state's rows `index` (beam search, batch selection and repetition)."""
    if isinstance(state, Rows):
        return state.select(index)
    return tree_map_only(Tensor, lambda t: t.index_select(0, index.to(t.device)), state)


def measured_bytes(state: State) -> int:
    """Bytes that the state's tensors hold in memory, each storage counted once."""
    if isinstance(state, Rows):
        return sum(measured_bytes(row) for row in state.rows)
    tensors = [t for t in tree_leaves(state) if isinstance(t, Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
