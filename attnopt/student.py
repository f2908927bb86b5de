"""From a teacher to a student: swap, start close, choose what trains."""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from attnopt.device import token_ids
from attnopt.hf.attach import attach, mechanisms_of
from attnopt.hf.layers import attention_layers
from attnopt.mechanisms import load
from attnopt.mechanisms.base import Inputs
from attnopt.params import Variant
from attnopt.teacher import hidden_states

Scope = Literal["mechanism", "attention", "all"]


@dataclass(frozen=True)
class Trainable:
    """What trains, by name: the mechanisms' own parameters, and the model's."""

    own: dict[str, nn.Parameter]
    others: dict[str, nn.Parameter]

    def named(self) -> dict[str, nn.Parameter]:
        return self.own | self.others

    def parameters(self) -> list[nn.Parameter]:
        return [*self.own.values(), *self.others.values()]


def build(teacher: Any, variant: Variant, seed: int) -> Any:
    """A copy of the teacher with the variant's mechanism in its layers; `seed` is of what is drawn."""
    student = copy.deepcopy(teacher)
    if variant.weights == "random":
        redraw(student, seed)
    return attach(student, load(variant.kind), variant.options, variant.layers, seed)


def softmax_copy(teacher: Any) -> Any:
    """A copy of the teacher whose attention is our softmax, so that q, k and v can be seen as they enter it."""
    softmax = load("softmax")
    return attach(copy.deepcopy(teacher), softmax, softmax.Options())


def projections(model: Any) -> dict[str, Any]:
    """The linear maps of the attention layers (Linear, GPT-2's Conv1D), mechanisms excluded, by name."""
    inside = {id(m) for layer in attention_layers(model) for m in layer.modules()}
    named = {n: m for n, m in model.named_modules() if id(m) in inside and ".mechanism" not in n}
    return {n: m for n, m in named.items() if isinstance(m, nn.Linear | Conv1D)}


@torch.no_grad()
def redraw(model: Any, seed: int) -> None:
    """Draw the attention layers' projections anew, as an untrained model of this architecture has them."""
    generator = torch.Generator().manual_seed(seed)
    for module in projections(model).values():
        weight = torch.randn(module.weight.shape, generator=generator) * model.config.initializer_range
        module.weight.copy_(weight)
        if module.bias is not None:
            module.bias.zero_()


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


@torch.no_grad()
def fit(student: Any, teacher: Any, blocks: np.ndarray) -> None:
    """Start every mechanism close to the teacher, from the teacher's q, k, v on some training blocks (n, T)."""
    inputs = layer_inputs(softmax_copy(teacher), token_ids(blocks, teacher.device))
    for mechanism, x in zip(mechanisms_of(student), inputs, strict=True):
        mechanism.fit(x)


def choose_trainable(student: Any, scope: Scope) -> Trainable:
    """The parameters of a scope: the mechanisms alone, with the attention layers around them, or the whole model."""
    inside = {id(p) for layer in attention_layers(student) for p in layer.parameters()}
    own: dict[str, nn.Parameter] = {}
    others: dict[str, nn.Parameter] = {}
    for name, parameter in student.named_parameters():
        if ".mechanism." in name:
            own[name] = parameter
        elif scope == "all" or (scope == "attention" and id(parameter) in inside):
            others[name] = parameter
    return Trainable(own, others)
