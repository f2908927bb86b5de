"""Which modules of a model are sharded over processes, and which runs cannot be.

The attention layers, their mechanisms and the blocks around them each gather their own parameters when they are called,
so that whatever calls them, a phase or a look at the validation KL, needs to know nothing of it. Embeddings, last norm
and head stay whole in every process, and do not train.
"""

import copy
from typing import Any

from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method

from attnopt.core.distributed import Alone, load_whole
from attnopt.core.errors import UserError
from attnopt.mechanisms.base import Mechanism
from attnopt.student.attach import check_swapped, mechanisms_of
from attnopt.student.build import around_attention
from attnopt.student.layers import attention_layers, blocks_of
from attnopt.teacher.head import head_of
from attnopt.training.params import Variant
from attnopt.training.phases import PHASES

METHODS = ("penalty", "coefficients")
"""Of a mechanism, which read its parameters outside of its forward pass."""


def refuse_unshardable(variant: Variant) -> None:
    """Raises UserError that names the key where a run needs what sharded models do not have."""
    wrong = {
        "lora.steps": (variant.lora.steps or variant.lora.epochs, "adapters are not sharded; allowed: 0"),
        "transfer.loss": (
            variant.transfer.loss != "outputs" and variant.transfer.steps != 0,
            "weights need a whole copy of the teacher; allowed: outputs",
        ),
    }
    for name in ("transfer", "align", "distill"):
        reason = "embeddings are not sharded; allowed: attention, mechanism"
        wrong[f"{name}.train"] = (variant.phase(name).train == "all", reason)  # type: ignore[arg-type]
    for key, (found, reason) in wrong.items():
        if found:
            raise UserError(f"{variant.name}.{key}: with distill.sharding full {reason}")


def shard_models(student: Any, teacher: Any, group: Alone) -> list[Mechanism]:
    """Shard both over the group and bring them to its device, in place; a process holds one block of them whole at a
    time.

    Returns: whole copies of the student's mechanisms, by layer, to be fitted.
    """
    whole = copy.deepcopy(mechanisms_of(student))
    for model in (teacher, student):
        group.shard(units_of(model))
        model.to(group.device)
    for mechanism in mechanisms_of(student):
        for method in METHODS:
            register_fsdp_forward_method(mechanism, method)
    head_of(teacher)  # a call of every block, which makes it, and no layer in it, the one that ends a backward pass
    check_swapped(student)
    return [mechanism.to(group.device) for mechanism in whole]


def load_fitted(student: Any, fitted: list[Mechanism]) -> None:
    """Give the student's mechanisms what their whole copies learnt."""
    for mechanism, copied in zip(mechanisms_of(student), fitted, strict=True):
        load_whole(mechanism, copied.state_dict())


def uncopied(teacher: Any, variant: Variant, group: Alone) -> list[nn.Parameter]:
    """The teacher's parameters that its student holds too: those that no phase trains, and all where they are sharded
    before any does."""
    if group.shards:
        return list(teacher.parameters())
    everything = any(variant.phase(name).train == "all" for name in PHASES)
    return [] if everything else around_attention(teacher)


def units_of(model: Any) -> list[nn.Module]:
    """The modules that gather their parameters at once, the inner ones first."""
    return [*mechanisms_of(model), *attention_layers(model), *blocks_of(model)]
