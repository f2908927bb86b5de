"""What a model's attention layers got and gave: the one place where calls of modules are watched.

`watched` registers hooks and always takes them away again; the others are built on it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnopt.mechanisms.base import Inputs, Mechanism
from attnopt.mechanisms.shared.composite import outermost
from attnopt.ops.tensors import repeat_heads, wide
from attnopt.student.layers import attention_layers
from attnopt.teacher.head import hidden_states

Before = Callable[[Any, tuple, dict[str, Any]], Any]
"""(module, args, kwargs); what it returns, unless None, is what the module gets instead: (args, kwargs)."""
After = Callable[[Any, tuple, dict[str, Any], Any], Any]
"""(module, args, kwargs, output); what it returns, unless None, is what the module's caller gets instead."""


@contextmanager
def watched(modules: Iterable[nn.Module], before: Before | None = None, after: After | None = None) -> Iterator[None]:
    """See every call of some modules while the context lasts; afterwards no hook is left, whatever happened.

    with watched(mechanisms_of(model), after=lambda mechanism, args, kwargs, output: outputs.append(output[0])):
        model(ids)
    """
    hooks = []
    try:
        for module in modules:
            if before is not None:
                hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
            if after is not None:
                hooks.append(module.register_forward_hook(after, with_kwargs=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Call:
    """One call of an attention layer, ready to be made to another model's layer.

    Attributes:
        args, kwargs: what the layer got, without a mask.
        output: (B, T, C) what it gave.
        inputs: q, k, v and hidden as they entered the mechanism; None where the layer has none.
    """

    args: tuple
    kwargs: dict[str, Any]
    output: Tensor
    inputs: Inputs | None

    @property
    def hidden(self) -> Tensor:
        """(B, T, C) the hidden states that the layer got."""
        return self.args[0] if self.args else self.kwargs["hidden_states"]


@torch.no_grad()
def layer_calls(model: Any, ids: Tensor, positions: Tensor | None = None) -> list[Call]:
    """The calls of a model's attention layers on blocks of token ids (B, T), by layer.

    Args:
        positions: (B, T) where the tokens stand; None: at 0, 1, 2, ...
    """
    calls: list[Call] = []
    seen: list[Inputs] = []

    def keep_inputs(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append(args[0])

    def keep_call(_: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        calls.append(Call(args, _without_mask(kwargs), output[0], seen.pop() if seen else None))

    layers = attention_layers(model)
    mechanisms = [m for layer in layers for m in _mechanisms_in(layer)]
    with watched(layers, after=keep_call), watched(mechanisms, before=keep_inputs):
        hidden_states(model, ids, positions)
    return calls


def layer_inputs(swapped: Any, ids: Tensor, positions: Tensor | None = None) -> list[Inputs]:
    """q, k, v and hidden as they enter every layer's mechanism, on blocks of token ids (B, T) at these positions."""
    return [call.inputs for call in layer_calls(swapped, ids, positions) if call.inputs is not None]


class _Enough(Exception):
    """Ends a call of which no more is wanted."""


@torch.no_grad()
def replayed_calls(
    model: Any, ids: Tensor, positions: Tensor | None, hidden: Tensor, outputs: Tensor
) -> Iterator[Call]:
    """What `layer_calls` gives, by what is known of it: the model runs up to its first attention layer and no further.

    Only models whose attention layers are all called with the same arguments, but for the hidden states, can be
    replayed.

    Args:
        hidden, outputs: (layers, B, T, C) what each layer got and gave.
    """
    layers = attention_layers(model)
    args, kwargs = _first_arguments(layers[0], lambda: hidden_states(model, ids, positions))
    for layer, got, gave in zip(layers, hidden, outputs, strict=True):
        given = ((got, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": got})
        inside = _mechanisms_in(layer)
        entered = _first_arguments(inside[0], lambda: layer(*given[0], **given[1]))[0][0] if inside else None  # noqa: B023
        yield Call(*given, gave, entered)


def _first_arguments(module: nn.Module, run: Callable[[], Any]) -> tuple[tuple, dict[str, Any]]:
    """What a module is called with first in `run`, which ends there."""
    seen: list[tuple[tuple, dict[str, Any]]] = []

    def keep(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append((args, _without_mask(kwargs)))
        raise _Enough

    with watched([module], before=keep), suppress(_Enough):
        run()
    return seen[0]


def _without_mask(kwargs: dict[str, Any]) -> dict[str, Any]:
    return kwargs | {"attention_mask": None} if "attention_mask" in kwargs else kwargs


def _mechanisms_in(layer: nn.Module) -> list[Mechanism]:
    return outermost(layer.modules())


@contextmanager
def attention_weights(mechanism: Mechanism) -> Iterator[list[Tensor]]:
    """A list that gets the (B, H, T, T) attention weights of every call of the mechanism within the context.

    Each call within computes the weights, which are kept, and gives their product with the values. The mechanism thus
    runs once a call, and gradients flow through the weights to its parameters.

    Args:
        mechanism: one with `dense_weights`. It is to be called on whole sequences: without a state, whose tokens would
            have weights too, and without a mask.
    Raises: ValueError where one of these does not hold.
    """
    if not mechanism.dense_weights:
        raise ValueError(f"{mechanism.kind} has no attention weights on every token")
    weights: list[Tensor] = []

    def forward(x: Inputs, state: Any = None, keeps_state: bool = True) -> tuple[Tensor, None]:
        if x.keep is not None or state is not None:
            raise ValueError("attention weights are those of whole sequences: without a mask and without a state")
        weights.append(mechanism.weights(x))
        (v,) = wide(x.v)
        return (weights[-1] @ repeat_heads(v, x.q.shape[1])).to(x.v.dtype), None

    vars(mechanism)["forward"] = forward
    try:
        yield weights
    finally:
        del vars(mechanism)["forward"]
