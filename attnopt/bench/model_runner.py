"""A whole model at work: prefill, decode and train as `generate()` and a training loop would run it."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from attnopt import mechanisms
from attnopt.bench.work import Setting, Work, weight_bytes
from attnopt.mechanisms.base import State, measured_bytes
from attnopt.mechanisms.shared.compiled import compile_steps
from attnopt.mechanisms.shared.states import with_room
from attnopt.records.bench import Phase
from attnopt.student.attach import mechanisms_of
from attnopt.student.layers import attention_layers, describe_layer
from attnopt.student.state import StateLayer

POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings")


class ModelRunner:
    """A Hugging Face causal language model, untouched or with a mechanism attached.

    Args:
        model: is moved to the setting's device and precision, in place.
    """

    def __init__(self, model: Any, setting: Setting):
        self.model = model.to(setting.device, setting.dtype).eval()
        self.setting = setting
        self.weights = weight_bytes(self.model)
        if setting.compiles:
            compile_steps(mechanisms_of(self.model))

    def work(self, phase: Phase, length: int) -> Work:
        tokens = self.setting.decode_tokens if phase == "decode" else 0
        extend_positions(self.model, length + tokens)
        shape = (self.setting.batch, length + tokens)
        ids = torch.randint(self.model.config.vocab_size, shape, device=self.setting.device)
        if phase == "train":
            self.model.requires_grad_(True)
            return Work(lambda _: self._train(ids))
        if phase == "prefill":
            return Work(lambda _: self._forward(ids))
        new = ids[:, length:].split(1, dim=1)
        return Work(lambda cache: self._decode(new, cache), lambda: self._forward(ids[:, :length]), _copied, tokens)

    @torch.no_grad()
    def _forward(self, ids: Tensor, cache: Any = None) -> Any:
        return self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values

    def _decode(self, tokens: tuple[Tensor, ...], cache: Any) -> Any:
        for token in tokens:
            cache = self._forward(token, cache)
        return cache

    def _train(self, ids: Tensor) -> Any:
        loss = self.model(input_ids=ids, labels=ids, use_cache=False).loss
        return torch.autograd.grad(loss, list(self.model.parameters()), allow_unused=True)

    def state_bytes(self, left: Any) -> int:
        return sum(measured_bytes(_layer_state(layer)) for layer in left.layers)

    def declared_bytes(self, length: int) -> int:
        own = mechanisms_of(self.model)
        if not own:
            softmax = mechanisms.load_mechanism("softmax")
            layers = attention_layers(self.model)
            own = [softmax(describe_layer(self.model, layer), softmax.Options()) for layer in layers]
        return sum(m.state_bytes(self.setting.batch, length, self.setting.dtype) for m in own)

    def weight_bytes(self) -> int:
        return self.weights

    def is_synthetic(self, phase: Phase, length: int) -> bool:
        needed = length + (self.setting.decode_tokens if phase == "decode" else 0)
        return position_table(self.model) is not None and needed > self.model.config.max_position_embeddings


def _copied(cache: Any) -> Any:
    """A cache of its own, as decoding has it in its midst: a state that grows in place has room to."""
    copied = copy.deepcopy(cache)
    for layer in copied.layers:
        if isinstance(layer, StateLayer):
            layer.state = with_room(layer.state)
    return copied


def _layer_state(layer: Any) -> State:
    return layer.state if hasattr(layer, "state") else (layer.keys, layer.values)


def position_table(model: nn.Module) -> nn.Embedding | None:
    """The learned positions of a model that has them."""
    named = ((name.rpartition(".")[2], module) for name, module in model.named_modules())
    return next((m for name, m in named if name in POSITION_TABLES and isinstance(m, nn.Embedding)), None)


def extend_positions(model: Any, needed: int) -> None:
    """Repeat learned positions until there are `needed`: the outputs mean nothing, the time is right."""
    table = position_table(model)
    missing = needed - model.config.max_position_embeddings
    if table is None or missing <= table.num_embeddings - model.config.max_position_embeddings:
        return
    rows = torch.arange(table.num_embeddings + missing, device=table.weight.device) % table.num_embeddings
    table.weight = nn.Parameter(table.weight.detach()[rows], requires_grad=table.weight.requires_grad)
    table.num_embeddings = len(rows)
