"""What transformers calls in a swapped model: the attention function, its mask, and what stands around each layer."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function

from attnopt.core.errors import UserError
from attnopt.mechanisms.base import Inputs, Mechanism
from attnopt.student.state import StateCache, StateLayer

UNSUPPORTED = ("softcap", "s_aux", "sliding_window", "position_bias", "head_mask")


class LayerCall(NamedTuple):
    """What the attention function is not given: the layer's input (B, T, C), and its decoding state."""

    hidden: Tensor
    cache: StateLayer | None


def noting(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's `forward` that keeps on the layer, while it runs, what `attend` will need.

    Hooks would do the same in several times the time, which is a decoding step's to pay in every layer.
    """

    @functools.wraps(forward)
    def noted(layer: Any, *args: Any, **kwargs: Any) -> Any:
        vars(layer)["attnopt_call"] = _layer_call(layer, args, kwargs)
        try:
            return forward(layer, *args, **kwargs)
        finally:
            vars(layer)["attnopt_call"] = None

    return noted


def _layer_call(layer: Any, args: tuple, kwargs: dict[str, Any]) -> LayerCall:
    """Raises: UserError where the caller brings a cache that is not a StateCache."""
    hidden = args[0] if args else kwargs["hidden_states"]
    cache = kwargs.get("past_key_values")
    if cache is None:
        cache = next((kwargs[n] for n in ("past_key_value", "layer_past") if kwargs.get(n) is not None), None)
        if cache is None and len(args) > 1 and hasattr(args[1], "layers"):
            cache = args[1]
    if cache is None:
        return LayerCall(hidden, None)
    if not isinstance(cache, StateCache):
        raise UserError(
            f"a swapped model keeps its own decoding state: pass no past_key_values or attnopt's StateCache, "
            f"not {type(cache).__name__}"
        )
    return LayerCall(hidden, cache.layers[layer.layer_idx])


def attend(
    layer: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function: the layer's mechanism on its q, k and v.

    Args:
        query: (B, H, T, D). key, value: (B, G, T, D), of the new tokens alone.
        attention_mask: what `padding_mask` gave.
    Returns: the output (B, T, H, D), and no attention weights.
    Raises: UserError where the architecture asks for what no mechanism honours.
    """
    mechanism: Mechanism = layer.mechanism
    _refuse_extras(mechanism, kwargs)
    call: LayerCall = layer.attnopt_call
    # Under autocast rotary positions make q and k float32 and leave v as it was.
    x = Inputs(query, key.to(query.dtype), value.to(query.dtype), call.hidden, attention_mask)
    if torch.is_autocast_enabled(query.device.type):
        with torch.autocast(query.device.type, enabled=False):
            return _run(mechanism, x, call.cache), None
    return _run(mechanism, x, call.cache), None


def _run(mechanism: Mechanism, x: Inputs, cache: StateLayer | None) -> Tensor:
    """The output (B, T, H, D), and the cache's state brought forward."""
    if cache is None:
        out, _ = mechanism(x, keeps_state=False)
    else:
        out, cache.state = mechanism(x, cache.state)
    return out.transpose(1, 2)


def _refuse_extras(mechanism: Mechanism, kwargs: dict[str, Any]) -> None:
    for name in UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise UserError(f"this architecture's attention uses {name}, which no mechanism honours")
    scaling = kwargs.get("scaling")
    if scaling is not None and abs(scaling - mechanism.geometry.scaling) > 1e-6:
        raise UserError(f"this architecture scales scores by {scaling}, its layer says {mechanism.geometry.scaling}")


def padding_mask(
    batch_size: int,
    q_length: int,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """(B, T) True where a new token is real; None where all are.

    Raises: UserError where attention is more than plainly causal: packed documents, windows, prefixes.
    """
    if mask_function is not causal_mask_function:
        raise UserError("only plainly causal attention can be swapped: no packed documents, windows or prefix masks")
    if attention_mask is None:
        return None
    keep = attention_mask[:, -q_length:].bool()
    return None if bool(keep.all()) else keep
