"""From a teacher to a student: swap, start close, choose what trains."""

import copy
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from attnopt.hf.attach import attach, mechanisms_of
from attnopt.hf.layers import attention_layers
from attnopt.mechanisms import load
from attnopt.mechanisms.base import Inputs
from attnopt.params import Variant

Scope = Literal["mechanism", "attention", "all"]


def build(teacher: Any, variant: Variant, seed: int) -> Any:
    """A copy of the teacher with the variant's mechanism in its layers."""
    student = copy.deepcopy(teacher)
    return attach(student, load(variant.kind), variant.options, variant.layers, seed)


@torch.no_grad()
def layer_inputs(teacher: Any, ids: Tensor) -> list[Inputs]:
    """What the teacher's own attention layers get for (B, T) token ids: q, k, v and hidden of every layer."""
    softmax = load("softmax")
    copied = attach(copy.deepcopy(teacher), softmax, softmax.Options())
    seen: list[Inputs] = []
    for mechanism in mechanisms_of(copied):
        mechanism.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    copied(input_ids=ids, use_cache=False, logits_to_keep=1)
    return seen


@torch.no_grad()
def fit(student: Any, teacher: Any, blocks: np.ndarray) -> None:
    """Start every mechanism close to the teacher, from the teacher's q, k, v on some training blocks (n, T)."""
    ids = torch.from_numpy(blocks.astype(np.int64)).to(teacher.device)
    for mechanism, x in zip(mechanisms_of(student), layer_inputs(teacher, ids), strict=True):
        mechanism.fit(x)


def choose_trainable(student: Any, scope: Scope) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Freeze all but the scope; returns the mechanisms' own trainable parameters and the model's, by name."""
    student.requires_grad_(False)
    inside = {id(p) for layer in attention_layers(student) for p in layer.parameters()}
    own: dict[str, nn.Parameter] = {}
    others: dict[str, nn.Parameter] = {}
    for name, parameter in student.named_parameters():
        if ".mechanism." in name:
            own[name] = parameter.requires_grad_(True)
        elif scope == "all" or (scope == "attention" and id(parameter) in inside):
            others[name] = parameter.requires_grad_(True)
    return own, others
