"""What the stages of training minimise, each a section of params.yaml; together they take a student to its teacher.

    transfer   every layer's output on the teacher's own inputs, all layers in one pass     (LoLCATs, arXiv:2410.10254)
    align      the hidden states after every layer, the student running on its own         (MOHAWK, arXiv:2408.10189)
    distill    a divergence between the two next-token distributions, and cross-entropy    (Hinton et al. 2015)
    lora       the same, with low-rank adapters alone, merged at its end                   (Hu et al. 2021)

An objective is a module whose `forward` gives the loss of some blocks, so that it runs under DDP as it is. Its `begin`
says what trains; its `end` leaves a plain student.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from attnopt.core.device import autocast
from attnopt.core.errors import UserError
from attnopt.mechanisms.base import Inputs, Mechanism
from attnopt.ops.tensors import repeat_heads, wide
from attnopt.student import build as students
from attnopt.student.attach import mechanisms_of
from attnopt.student.build import Trainable
from attnopt.student.calls import layer_calls
from attnopt.student.layers import attention_layers
from attnopt.targets.dataset import Dataset
from attnopt.teacher.head import head_of, hidden_states
from attnopt.training.chunked_loss import LossSpec, distillation_loss
from attnopt.training.params import Variant


class Objective(nn.Module):
    """Base: the student is the one submodule, the teacher is not, as nothing of it trains."""

    def __init__(self, student: Any, material: Dataset, variant: Variant, dtype: torch.dtype):
        super().__init__()
        self.student, self.material, self.variant, self.dtype = student, material, variant, dtype
        self.params: Any = variant.stage(self.name)

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def trainable(self) -> Trainable:
        """What would train, without changing anything."""
        return students.choose_trainable(self.student, self.params.train)

    def begin(self) -> Trainable:
        """Freeze all but what trains, and return that."""
        found = self.trainable()
        self.student.requires_grad_(False)
        for parameter in found.parameters():
            parameter.requires_grad_(True)
        return found

    def forward(self, ids: Tensor, targets: Any) -> tuple[Tensor, Tensor | None]:
        """The loss, and the divergence where it is part of it, of blocks (b, T); scalars, means over tokens.

        Args:
            targets: what `Material.targets` gave for the blocks, for objectives that have `needs_targets`.
        """
        with autocast(ids.device, self.dtype):
            loss, kl = self.loss(ids, targets)
        for mechanism in mechanisms_of(self.student):
            if (penalty := mechanism.penalty()) is not None:
                loss = loss + penalty
        return loss, kl

    needs_targets = False

    def loss(self, ids: Tensor, targets: Any) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError

    def end(self) -> None:
        """Leave the student a plain model, without traces of this stage."""


def relative_error(ours: Tensor, theirs: Tensor) -> Tensor:
    """|| ours - theirs ||^2 / || theirs ||^2 of each block (b, T, C), averaged over blocks: a scalar without units."""
    ours, theirs = (t.flatten(1) for t in wide(ours, theirs))
    return ((ours - theirs).square().sum(1) / theirs.square().sum(1)).mean()


class Transfer(Objective):
    """Mean over layers of the relative error of their outputs, and, as asked, KL of the attention weights."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.outputs, self.weights = (self.params.loss in (part, "both") for part in ("outputs", "weights"))
        if self.weights and not all(m.dense_weights for m in mechanisms_of(self.student)):
            raise UserError(
                f"{self.variant.name}.transfer.loss: '{self.params.loss}' needs attention weights on every "
                f"token before, and {self.variant.kind} has none; allowed: outputs"
            )

    @cached_property
    def teacher(self) -> Any:
        """A softmax copy where q and k are to be seen as they enter the attention; the teacher itself is faster."""
        return students.softmax_copy(self.material.teacher) if self.weights else self.material.teacher

    def loss(self, ids: Tensor, targets: Any) -> tuple[Tensor, Tensor | None]:
        layers: list[Any] = attention_layers(self.student)
        losses = []
        for layer, call in zip(layers, layer_calls(self.teacher, ids), strict=True):
            with ExitStack() as watched:
                weights = watched.enter_context(attention_weights(layer.mechanism)) if self.weights else []
                ours = layer(*call.args, **call.kwargs)[0]
            if self.outputs:
                losses.append(relative_error(ours, call.output))
            if self.weights:
                losses.append(weights_kl(weights[0], call.inputs, layer.mechanism.geometry.scaling))
        return torch.stack(losses).sum() / len(layers), None


@contextmanager
def attention_weights(mechanism: Mechanism) -> Iterator[list[Tensor]]:
    """The (B, H, T, T) weights of every call within, each computed once.

    The mechanism is given the unit vectors for values, so that its output is what it gives every token; the call's own
    output is the product of that and the values.
    """
    values: list[Tensor] = []
    weights: list[Tensor] = []

    def before(_: Any, args: tuple) -> tuple:
        values.append(args[0].v)
        q, k = wide(args[0].q, args[0].k)
        batch, groups, tokens, _ = k.shape
        units = torch.eye(tokens, dtype=k.dtype, device=k.device).expand(batch, groups, -1, -1)
        return (replace(args[0], q=q, k=k, v=units), *args[1:])

    def after(_: Any, args: tuple, output: tuple) -> tuple:
        (v,) = wide(values[-1])
        weights.append(output[0])
        return (output[0] @ repeat_heads(v, output[0].shape[1])).to(values.pop().dtype), None

    hooks = [mechanism.register_forward_pre_hook(before), mechanism.register_forward_hook(after)]
    try:
        yield weights
    finally:
        for hook in hooks:
            hook.remove()


def weights_kl(weights: Tensor, theirs: Inputs | None, scaling: float) -> Tensor:
    """KL(teacher's attention weights || student's), a mean over rows; one nat of it is one of cross-entropy.

    Args:
        weights: the student's, (B, H, T, T). theirs: q and k as they enter the teacher's attention.
    """
    assert theirs is not None
    q, k = wide(theirs.q, theirs.k)
    with torch.no_grad():
        scores = q @ repeat_heads(k, q.shape[1]).mT * scaling
        future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        log_p = scores.masked_fill(future, -torch.inf).log_softmax(-1).masked_fill(future, 0)
        p = log_p.exp().masked_fill(future, 0)
    return (p * (log_p - weights.clamp(min=1e-9).log())).sum(-1).mean()


class Align(Objective):
    """Mean over layers of the relative error of the hidden states."""

    def loss(self, ids: Tensor, targets: Any) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            theirs = _hidden_by_layer(self.material.teacher, ids)
        ours = _hidden_by_layer(self.student, ids)
        return torch.stack([relative_error(a, b) for a, b in zip(ours, theirs, strict=True)]).mean(), None


def _hidden_by_layer(model: Any, ids: Tensor) -> tuple[Tensor, ...]:
    """(B, T, C) after each layer; what goes into the first is the same for both."""
    return model.base_model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[1:]


class Distill(Objective):
    """Divergence of the next-token distributions, and cross-entropy."""

    needs_targets = True

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.head = head_of(self.student)

    def loss(self, ids: Tensor, targets: Any) -> tuple[Tensor, Tensor | None]:
        p = self.variant.distill
        spec = LossSpec(p.kl, p.ce_weight, p.temperature, p.loss_chunk)
        ours = hidden_states(self.student, ids)[:, :-1].flatten(0, 1)
        return distillation_loss(ours, self.head, targets, ids[:, 1:].flatten(), spec)


class Lora(Distill):
    """The distill objective on low-rank updates of the attention layers' projections."""

    def trainable(self) -> Trainable:
        """The adapters' own weights do not exist yet: the projections they stand for, to know whether there are any."""
        return Trainable({}, {f"{name}.weight": module.weight for name, module in self._targets().items()})

    def _targets(self) -> dict[str, Any]:
        wanted = self.params.targets
        found = students.projections(self.student)
        chosen = {n: m for n, m in found.items() if wanted is None or n.rsplit(".", 1)[-1] in wanted}
        if not chosen:
            names = sorted({n.rsplit(".", 1)[-1] for n in found})
            raise UserError(f"lora.targets: {wanted} are no projections of this model; it has {', '.join(names)}")
        return chosen

    def begin(self) -> Trainable:
        from peft import LoraConfig, LoraModel

        p, targets = self.params, self._targets()
        transposed = any(type(module).__name__ == "Conv1D" for module in targets.values())
        config = LoraConfig(
            r=p.rank, lora_alpha=p.alpha, target_modules=list(targets), lora_dropout=0.0, fan_in_fan_out=transposed
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.adapted = [LoraModel(self.student, config, "default")]
        return Trainable({}, {n: t for n, t in self.student.named_parameters() if t.requires_grad})

    def end(self) -> None:
        self.adapted.pop().merge_and_unload()


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    cls.__name__.lower(): cls for cls in (Transfer, Align, Distill, Lora)
}
"""In the order in which they run."""
