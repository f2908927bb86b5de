"""From a teacher to a student: swap, start close, choose what trains."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from attnopt.core.device import token_ids
from attnopt.mechanisms.base import Mechanism
from attnopt.student.attach import attach, detach
from attnopt.student.calls import layer_inputs
from attnopt.student.layers import attention_layers
from attnopt.student.swap import Swap

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


def build_student(teacher: Any, swap: Swap, seed: int, shared: Iterable[nn.Parameter] = ()) -> Any:
    """A copy of the teacher with a mechanism in its layers; `seed` is of what is drawn.

    Args:
        shared: of the teacher's parameters, those that it is to hold too, in place of copies. None of them may train.
    """
    student = copy.deepcopy(teacher, {id(p): p for p in shared})
    if swap.weights == "random":
        redraw_projections(student, seed)
    return attach(student, swap, seed)


def softmax_copy(teacher: Any) -> Any:
    """A copy of the teacher whose attention is our softmax, so that q, k and v can be seen as they enter it."""
    return attach(copy.deepcopy(teacher), Swap("softmax"))


def projections(model: Any) -> dict[str, Any]:
    """The linear maps of the attention layers (Linear, GPT-2's Conv1D), mechanisms excluded, by name."""
    inside = {id(m) for layer in attention_layers(model) for m in layer.modules()}
    named = {n: m for n, m in model.named_modules() if id(m) in inside and ".mechanism" not in n}
    return {n: m for n, m in named.items() if isinstance(m, nn.Linear | Conv1D)}


@torch.no_grad()
def redraw_projections(model: Any, seed: int) -> None:
    """Draw the attention layers' projections anew, as an untrained model of this architecture has them."""
    generator = torch.Generator().manual_seed(seed)
    for module in projections(model).values():
        weight = torch.randn(module.weight.shape, generator=generator) * model.config.initializer_range
        module.weight = _in_place_of(module.weight, weight)
        if module.bias is not None:
            module.bias = _in_place_of(module.bias, torch.zeros_like(module.bias))


def _in_place_of(parameter: nn.Parameter, values: Tensor) -> nn.Parameter:
    """A new one, as the teacher may hold the old one too."""
    return nn.Parameter(values.to(parameter), parameter.requires_grad)


@torch.no_grad()
def fit_mechanisms(
    mechanisms: Sequence[Mechanism], teacher: Any, blocks: np.ndarray, positions: Tensor | None = None
) -> None:
    """Start every mechanism close to the teacher, from the teacher's q, k, v on some training blocks (n, T).

    Args:
        mechanisms: of the student, by layer. teacher: its attention is our softmax meanwhile.
        positions: (n, T) where the tokens stand; None: at 0, 1, 2, ...
    """
    attach(teacher, Swap("softmax"))
    try:
        inputs = layer_inputs(teacher, token_ids(blocks, teacher.device), positions)
    finally:
        detach(teacher)
    for mechanism, x in zip(mechanisms, inputs, strict=True):
        mechanism.fit(x)


def around_attention(model: Any) -> list[nn.Parameter]:
    """The parameters of a model outside of its attention layers."""
    inside = {id(p) for layer in attention_layers(model) for p in layer.parameters()}
    return [p for p in model.parameters() if id(p) not in inside]


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
