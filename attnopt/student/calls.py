"""What a model's attention layers got and gave: the one capture of layer calls."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnopt.mechanisms.base import Inputs
from attnopt.student.attach import mechanisms_of
from attnopt.student.layers import attention_layers
from attnopt.teacher.head import hidden_states


@dataclass(frozen=True)
class Call:
    """What one attention layer got and gave, ready to be made to another model's; `inputs` where it was swapped."""

    args: tuple
    kwargs: dict[str, Any]
    output: Tensor
    inputs: Inputs | None


@torch.no_grad()
def layer_calls(model: Any, ids: Tensor) -> list[Call]:
    """The calls of a model's attention layers on blocks (B, T), by layer."""
    calls: list[Call] = []
    seen: list[Inputs] = []

    def after(_: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        without_mask = kwargs | {"attention_mask": None} if "attention_mask" in kwargs else kwargs
        calls.append(Call(args, without_mask, output[0], seen.pop() if seen else None))

    hooks = [layer.register_forward_hook(after, with_kwargs=True) for layer in attention_layers(model)]
    hooks += [m.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for m in mechanisms_of(model)]
    try:
        hidden_states(model, ids)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def layer_inputs(swapped: Any, ids: Tensor) -> list[Inputs]:
    """q, k, v and hidden as they enter every layer's mechanism."""
    return [call.inputs for call in layer_calls(swapped, ids) if call.inputs is not None]
