"""The contract of a mechanism: `Mechanism`, what it is told (`Geometry`, `Inputs`) and what it remembers (`State`).

A mechanism maps queries, keys and values of one layer to that layer's attention output. It is causal, and what it
remembers of the past is a state that goes in and comes out.

Shapes are written with these letters, here and in all other modules, and the work per token in the same ones:

    B   sequences in the batch
    H   query heads
    G   key/value heads; H is a multiple of G, and query head h reads key/value head h // (H / G)
    T   new tokens
    S   tokens seen before and new ones together
    D   dimension of a head
    C   width of the hidden states
    F   features per head
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import field_validator
from torch import Tensor, nn

from attnopt.core.section import Section
from attnopt.mechanisms.shared.inputs import Geometry, Inputs
from attnopt.mechanisms.shared.sizing import Size, sized_options
from attnopt.mechanisms.shared.states import Rows, State, measured_bytes, one_row, select_rows
from attnopt.ops.tensors import wide

__all__ = [
    "SHORT",
    "Geometry",
    "Inputs",
    "Mechanism",
    "MechanismOptions",
    "Rows",
    "Size",
    "State",
    "measured_bytes",
    "select_rows",
]

SHORT = 192
"""Tokens up to which a (T, T) matrix of weights is less work on a CPU than streaming, where nothing else is known."""

LARGEST = 2**24
"""Of any whole number among a mechanism's options."""


class MechanismOptions(Section):
    """Base of a mechanism's options, which are a section of params.yaml.

    A field's docstring is its help in `attnopt mechanisms`. Options are frozen and passed by keyword, an unknown key is
    refused, and the defaults of all fields together must make a mechanism that runs.
    """

    @field_validator("*")
    @classmethod
    def _of_this_world(cls, value: Any) -> Any:
        """Options may come from a foreign student: what no machine holds is refused before it is tried."""
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError(f"the largest number of anything is {LARGEST}")
        return value


class Mechanism(nn.Module):
    """Base of all mechanisms.

    A new one is one file in this package: a subclass that sets `source`, `growth` and `cost`, defines `extend`,
    `reference` and `state_bytes`, and overrides of the rest what it has: `Options`, `fit` to start close to the
    teacher, `parallel` for short training sequences, `sizes` where a budget may say how large it is, `limit` and
    `conformance_options` for its tests. Its `kind` is the file's name, and nothing has to be registered.

    Rules that `attnopt conform` checks: an output depends on no later token; nothing is kept on `self` between calls;
    a state that was passed in says what it said, and may be passed in again (see `State`); sums are accumulated in at
    least float32 (`attnopt.ops.tensors.wide`).
    Randomness at construction comes from torch's global generator, which the caller seeds, and what is drawn is kept in
    a buffer or a parameter. Padding, and rows that have seen different numbers of tokens, are handled by `forward`:
    `extend` never meets them.

    Example: every token reads the mean of the values so far.

        >>> from attnopt.ops.tensors import repeat_heads, wide
        >>> class RunningMean(Mechanism):
        ...     source, growth, cost = "https://arxiv.org/abs/2111.11418", "constant", "D"
        ...
        ...     def extend(self, x: Inputs, state: State = None) -> tuple[Tensor, State]:
        ...         (v,) = wide(x.v)
        ...         total, seen = state or (torch.zeros_like(v[:, :, 0]), 0)
        ...         sums = total[:, :, None] + v.cumsum(2)
        ...         counts = torch.arange(seen + 1, seen + v.shape[2] + 1, device=v.device)[:, None]
        ...         out = repeat_heads(sums / counts, x.q.shape[1]).to(x.q.dtype)
        ...         return out, (sums[:, :, -1].clone(), seen + v.shape[2])
        ...
        ...     def reference(self, x: Inputs) -> Tensor:
        ...         means = [x.v[:, :, : t + 1].mean(2) for t in range(x.v.shape[2])]
        ...         return repeat_heads(torch.stack(means, 2), x.q.shape[1])
        ...
        ...     def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        ...         return batch * self.geometry.kv_heads * self.geometry.head_dim * max(4, dtype.itemsize)
        >>> geometry = Geometry(heads=4, kv_heads=2, head_dim=8, hidden=32, scaling=8**-0.5)
        >>> mechanism = RunningMean(geometry, RunningMean.Options())
        >>> x = Inputs(torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8))
        >>> prompt, state = mechanism(x.slice(0, 5))  # a prefill of five tokens
        >>> step, state = mechanism(x.slice(5, 6), state)  # and one decoding step
        >>> torch.allclose(torch.cat([prompt, step], 2), mechanism(x)[0])
        True
    """

    kind: ClassVar[str]
    """The file's name; filled in by the registry."""
    source: ClassVar[str]
    """URL of the paper or code that defines it."""
    paper: ClassVar[str] = ""
    """How that paper is cited, such as "Choromanski et al. 2021"; empty where there is none."""
    growth: Literal["constant", "window", "linear"]
    """How the state grows with the tokens seen: not at all, until a window is full, or with every token."""
    cost: ClassVar[str] = ""
    """Work per token and head in the letters above and those of the options, for `attnopt mechanisms`."""
    control: ClassVar[Literal["leaks"] | None] = None
    """Set on negative controls, which never enter a ranking; one that `leaks` must fail the check of causality."""
    random_features: ClassVar[str | None] = None
    """The option that says how many random features it draws; None where it draws none."""
    normalised: bool = True
    """Whether the output is an average of values, so that v = 1 gives out = 1."""
    dense_weights: bool = False
    """Whether every token up to the present one has a weight of its own above zero, in an output linear in v: then
    the weights can be matched to the teacher's."""
    working: Literal["linear", "quadratic"] = "linear"
    """How the memory of a training pass grows with the length of the sequence."""
    parallel_up_to: int = SHORT
    """Tokens up to which `parallel` is less work than `extend`: what benchmarks/parallel.py says."""

    alike_when_repeated: bool = True
    """Whether one whose key/value heads are repeated does the same; not where it treats single heads differently."""

    compiles: ClassVar[tuple[str, ...]] = ()
    """Methods from tensors to tensors that decoding spends its time in: fused where compiled decoding is asked for."""

    class Options(MechanismOptions):
        """The options; a mechanism without any leaves this class as it is."""

    def __init__(self, geometry: Geometry, options: Any):
        """Make the mechanism of one layer.

        Args:
            geometry: the layer's heads and widths.
            options: an instance of this class's `Options`.

        Raises:
            ValueError: in a subclass, where options do not go with each other or with the geometry; the message names
                the option.
        """
        super().__init__()
        self.geometry = geometry
        self.options = options

    def forward(self, x: Inputs, state: State = None, keeps_state: bool = True) -> tuple[Tensor, State]:
        """The attention output for the new tokens, and the state after them. Models call this and nothing else.

        Args:
            x: the new tokens; padding, marked in `x.keep`, gives zeros and leaves the state as it was.
            state: what an earlier call returned for the same sequences, or None at their start.
            keeps_state: False where nobody will continue, as in training: a whole sequence may then be computed in a
                form that leaves no state, and None is returned in its place.

        Returns: out (B, H, T, D) in q's dtype, and the new state.

        Raises:
            ValueError: where the state holds another number of sequences than the padded input.
        """
        ragged = isinstance(state, Rows) or (x.keep is not None and not bool(x.keep.all()))
        if ragged:
            return self._extend_rows(x, state)
        if keeps_state or state is not None:
            return self.extend(x, state)
        return (self.parallel(x) if x.q.shape[2] <= self.parallel_up_to else self.extend(x)[0]), None

    def extend(self, x: Inputs, state: State = None) -> tuple[Tensor, State]:
        """The output for the new tokens and the state after them: prefill, chunk and decoding step in one.

        To be defined by every mechanism. Differentiable by the inputs, the parameters and the state.

        Args:
            x: T >= 1 new tokens, none of them padding; `x.keep` is to be ignored.
            state: what an earlier call returned, or None. It belongs to the caller, who may continue it again: its
                memory may be written to only where it has nothing, as `attnopt.ops.growing.Tokens` does, in which a
                mechanism that keeps all tokens keeps them.

        Returns: out (B, H, T, D) in q's dtype, and the new state.
        """
        raise NotImplementedError

    def parallel(self, x: Inputs) -> Tensor:
        """The output for a whole short sequence whose state nobody wants, as in training.

        To be defined where a form of its own, such as one (T, T) matrix of weights, is faster than `extend`, to which
        it must be equal in value and gradient.

        Args:
            x: a whole sequence, in training of up to `parallel_up_to` tokens, none of them padding.

        Returns: out (B, H, T, D) in q's dtype.
        """
        return self.extend(x)[0]

    def absorb(self, x: Inputs, state: State = None) -> State:
        """The state after the new tokens, where nobody wants their output: as `extend`, which to the bit it is.

        To be defined where it is less work than `extend`; a mixture calls it of the experts that no query reads.
        """
        return self.extend(x, state)[1]

    def weights(self, x: Inputs) -> Tensor:
        """The attention weights on a whole sequence, for mechanisms with `dense_weights`.

        The default never computes them: as the output is linear in the values, out_t = sum_s w_ts v_s, it is the row
        (w_t1 ... w_tT) where the values are the T unit vectors. To be defined where `parallel` has them anyway.

        Args:
            x: a whole sequence, none of its tokens padding.

        Returns: (B, H, T, T), in at least float32.
        """
        q, k = wide(x.q, x.k)
        batch, groups, tokens, _ = k.shape
        units = torch.eye(tokens, dtype=k.dtype, device=k.device).expand(batch, groups, -1, -1)
        return self.extend(replace(x, q=q, k=k, v=units))[0]

    def reference(self, x: Inputs) -> Tensor:
        """The same output by an obvious loop over tokens, to which the conformance suite holds the fast forms.

        To be defined by every mechanism, straight from the equations, differentiable, and without sharing code with
        `extend` where a mistake could hide in it.

        Args:
            x: a whole sequence, none of its tokens padding.

        Returns: out (B, H, T, D).
        """
        raise NotImplementedError

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Bytes of what the state remembers; the suite compares it with a real one.

        Room behind `Tokens` is not in it: there is none after a prefill, and in decoding at most as much again.

        Args:
            batch: B, the number of sequences.
            length: tokens that each has seen, 1 or more.
            dtype: of q, k and v; sums kept in float32 count as such.
        """
        raise NotImplementedError

    @classmethod
    def sizes(cls, geometry: Geometry, options: Any) -> tuple[Size, ...]:
        """The options that a budget of state may choose, and how they grow; none by default.

        Args:
            options: an instance of `Options`; an option that was set in it is never chosen, so a size with it is left
                out (by `sized`; where several go together, look at `model_fields_set`).
        """
        return ()

    @classmethod
    def sized(cls, geometry: Geometry, options: Any, allowed: int, length: int, dtype: torch.dtype) -> Any:
        """The options with the largest state within a budget, see `shared/sizing.py`; what was set in them stays.

        Args:
            allowed: bytes of one sequence's state in one layer, `length` tokens of `dtype` having been seen.

        Raises:
            ValueError: where what was set, or the least that there is, holds more.
        """
        return sized_options(cls, geometry, options, allowed, length, dtype)

    def fit(self, x: Inputs) -> None:
        """Start close to the teacher: set parameters and buffers in place from the teacher's own data of this layer.

        Called once, before training and without gradients, where the study fits its students. The default does nothing.

        Args:
            x: the teacher's queries, keys and values of some training sequences, after rotary positions; a mechanism
                may use a part of them.
        """

    def penalty(self) -> Tensor | None:
        """A scalar to add to the training loss, such as L1 on coefficients, or None. Its weight is an option."""
        return None

    def coefficients(self) -> Mapping[str, Tensor]:
        """Small tensors worth plotting over training, such as mask weights, by name: (H, n), or (1, n) per layer."""
        return {}

    def pruned(self, threshold: float) -> "Mechanism | None":
        """A smaller copy, without the parts that matter little.

        Args:
            threshold: parts whose `coefficients` are below it in all heads are left out.

        Returns: a new mechanism with the other parts' parameters, this one left as it is; None where the mechanism has
        no such parts.
        """
        return None

    @classmethod
    def limit(cls, length: int) -> Any | None:
        """The options at which its capacity is full, so that, as constructed, it equals softmax.

        Args:
            length: the longest sequence for which that must hold.

        Returns: an instance of `Options`; None where there are no such options, as with random features.
        """
        return None

    @classmethod
    def conformance_options(cls) -> dict[str, Any]:
        """The option sets that the conformance suite runs, by name: together they take each branch and each backend."""
        return {"default": cls.Options()}

    def _extend_rows(self, x: Inputs, state: State) -> tuple[Tensor, "Rows"]:
        """`extend` for each row on its own, with its padding cut out: slow, obvious, and right for every mechanism."""
        batch, _, tokens, _ = x.q.shape
        states = state.rows if isinstance(state, Rows) else [one_row(state, b) for b in range(batch)]
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


def _pick(b: int, kept: Tensor, t: Tensor, dim: int) -> Tensor:
    """Row b of t with the tokens `kept` alone, which lie along `dim`."""
    return t[b : b + 1].index_select(dim, kept)
