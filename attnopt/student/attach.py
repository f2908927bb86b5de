"""Swap mechanisms into a causal language model, in place and without modelling code.

transformers lets an attention function be registered by name. Ours gets the layer, q, k and v; a pre-hook on each
attention layer supplies what it does not get: the layer's input and the cache.
"""

import types
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function

from attnopt.core.errors import UserError
from attnopt.mechanisms import load_mechanism
from attnopt.mechanisms.base import Inputs, Mechanism
from attnopt.student.layers import attention_layers, describe_layer
from attnopt.student.state import StateCache, StateLayer

NAME = "attnopt"
UNSUPPORTED = ("softcap", "s_aux", "sliding_window", "position_bias", "head_mask")


class _Call(NamedTuple):
    hidden: Tensor
    cache: StateLayer | None


def attach(model: Any, cls: type[Mechanism], options: Any, layers: Iterable[int] | None = None, seed: int = 0) -> Any:
    """Replace softmax in `model`'s attention layers by a mechanism; the other layers keep softmax.

    Args:
        model: a Hugging Face causal language model; its config is changed, so it must not be shared with the teacher.
        cls, options: the mechanism and an instance of its Options.
        layers: indices of the layers to replace; None replaces all.
        seed: of what the mechanism draws at construction (random features).
    Returns: the model. Raises UserError where the architecture cannot be swapped or the options do not fit it.
    """
    found = attention_layers(model)
    chosen = set(range(len(found)) if layers is None else layers)
    if unknown := chosen - set(range(len(found))):
        raise UserError(f"layers: {sorted(unknown)} do not exist, the model has 0 to {len(found) - 1}")
    softmax = load_mechanism("softmax")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for i, layer in enumerate(found):
            kind, opts = (cls, options) if i in chosen else (softmax, softmax.Options())
            parameter = next(layer.parameters())
            try:
                mechanism = kind(describe_layer(model, layer), opts)
            except ValueError as error:
                raise UserError(f"{kind.kind} does not fit {type(model).__name__}: {error}") from None
            layer.mechanism = mechanism.to(parameter.device, parameter.dtype)
            layer.register_forward_pre_hook(_before, with_kwargs=True)
            layer.register_forward_hook(_after, always_call=True)
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    model.set_attn_implementation(NAME)
    _serve_own_cache(model, len(found))
    check_swapped(model)
    return model


def mechanisms_of(model: nn.Module) -> list[Mechanism]:
    """The mechanisms of a swapped model, by layer."""
    return [m for m in model.modules() if isinstance(m, Mechanism)]


@torch.no_grad()
def check_swapped(model: Any) -> None:
    """Run a few tokens and raise UserError unless every slot was really used: some architectures ignore the swap."""
    ran: list[int] = []
    found = mechanisms_of(model)
    hooks = [m.register_forward_hook(lambda m, *_: ran.append(m.geometry.layer)) for m in found]
    try:
        ids = torch.zeros(1, 3, dtype=torch.long, device=model.device)
        model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    if not found or sorted(ran) != [m.geometry.layer for m in found]:
        raise UserError(
            f"{type(model).__name__} cannot be swapped: {len(set(ran))} of {len(found)} layers ran the mechanism, "
            "its attention does not go through transformers' attention interface"
        )


def _before(layer: Any, args: tuple, kwargs: dict) -> None:
    hidden = args[0] if args else kwargs["hidden_states"]
    names = ("past_key_values", "past_key_value", "layer_past")
    cache = next((kwargs[n] for n in names if kwargs.get(n) is not None), None)
    if cache is None and len(args) > 1 and hasattr(args[1], "layers"):
        cache = args[1]
    if cache is not None and not isinstance(cache, StateCache):
        raise UserError(
            f"a swapped model keeps its own decoding state: pass no past_key_values or attnopt's StateCache, "
            f"not {type(cache).__name__}"
        )
    layer.attnopt_call = _Call(hidden, None if cache is None else cache.layers[layer.layer_idx])


def _after(layer: Any, *_: Any) -> None:
    layer.attnopt_call = None


def _attention(
    layer: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function: (B, H, T, D) queries to (B, T, H, D) outputs."""
    mechanism: Mechanism = layer.mechanism
    _refuse_extras(mechanism, kwargs)
    call: _Call = layer.attnopt_call
    # Under autocast rotary positions make q and k float32 and leave v as it was.
    x = Inputs(query, key.to(query.dtype), value.to(query.dtype), call.hidden, attention_mask)
    with torch.autocast(query.device.type, enabled=False):
        if call.cache is None:
            out, _ = mechanism(x, keeps_state=False)
        else:
            out, call.cache.state = mechanism(x, call.cache.state)
    return out.transpose(1, 2), None


def _refuse_extras(mechanism: Mechanism, kwargs: dict[str, Any]) -> None:
    for name in UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise UserError(f"this architecture's attention uses {name}, which no mechanism honours")
    scaling = kwargs.get("scaling")
    if scaling is not None and abs(scaling - mechanism.geometry.scaling) > 1e-6:
        raise UserError(f"this architecture scales scores by {scaling}, its layer says {mechanism.geometry.scaling}")


def _mask(
    batch_size: int,
    q_length: int,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """(B, T) True where a new token is real; None where all are. Packed documents and windows are refused."""
    if mask_function is not causal_mask_function:
        raise UserError("only plainly causal attention can be swapped: no packed documents, windows or prefix masks")
    if attention_mask is None:
        return None
    keep = attention_mask[:, -q_length:].bool()
    return None if bool(keep.all()) else keep


def _serve_own_cache(model: Any, layers: int) -> None:
    """Make bare calls and bare `generate()` use a StateCache; without `use_cache=True` there is none."""
    model.config.use_cache = False

    def give_cache(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if kwargs.get("use_cache") and kwargs.get("past_key_values") is None:
            return args, {**kwargs, "past_key_values": StateCache(layers)}
        return None

    def prepare(self: Any, generation_config: Any, model_kwargs: dict, *args: Any) -> None:
        if generation_config.cache_implementation is not None:
            raise UserError(f"cache_implementation={generation_config.cache_implementation!r} is not possible here")
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = StateCache(layers)

    model.register_forward_pre_hook(give_cache, with_kwargs=True)
    model._prepare_cache_for_generation = types.MethodType(prepare, model)
    model.generation_config.use_cache = True
