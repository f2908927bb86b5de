"""What transformers calls in a swapped model: the attention function, its mask, and the hooks around each layer."""

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


def note_call(layer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    """Before a layer: keep on it what `attend` will need, until `forget_call`.

    Raises: UserError where the caller brings a cache that is not a StateCache.
    """
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
    layer.attnopt_call = LayerCall(hidden, None if cache is None else cache.layers[layer.layer_idx])


def forget_call(layer: Any, *_: Any) -> None:
    """After a layer, also where it failed."""
    layer.attnopt_call = None


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
