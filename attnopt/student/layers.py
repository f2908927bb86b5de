"""Find the attention layers of a causal language model, describe them, and refuse what cannot be swapped."""

from typing import Any

from torch import nn

from attnopt.core.errors import UserError
from attnopt.mechanisms.base import Geometry

LOCAL_LAYERS = ("sliding_attention", "chunked_attention", "linear_attention", "mamba", "recurrent", "conv")


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """The model's causal self-attention layers, in order.

    Raises: UserError naming the architecture where it has none that goes through transformers' attention interface,
        or where its attention is not plainly causal (sliding windows, chunks, encoder-decoder).
    """
    config: Any = model.config
    name = type(model).__name__
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        raise UserError(f"{name} cannot be swapped: it has an encoder; a decoder-only language model is needed")
    local = [t for t in getattr(config, "layer_types", None) or [] if t in LOCAL_LAYERS]
    if local or (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)):
        kind = local[0] if local else f"sliding_window={config.sliding_window}"
        raise UserError(f"{name} cannot be swapped: its layers are not full attention ({kind})")
    layers = [m for m in model.modules() if _is_causal_attention(m)]
    if not layers or len(layers) != config.num_hidden_layers:
        found = f"{len(layers)} of {config.num_hidden_layers} layers"
        raise UserError(f"{name} cannot be swapped: {found} go through transformers' attention interface")
    return layers


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks that the model's attention layers lie in, in order: the items of its list of them."""
    layers = set(attention_layers(model))
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    return [block for blocks in lists for block in blocks if layers & set(block.modules())]


def _is_causal_attention(module: nn.Module) -> bool:
    has = hasattr(module, "layer_idx") and hasattr(module, "is_causal") and _head_dim(module) is not None
    return has and not getattr(module, "is_cross_attention", False)


def _head_dim(layer: nn.Module) -> Any:
    return getattr(layer, "head_dim", getattr(layer, "head_size", None))


def describe_layer(model: nn.Module, layer: Any) -> Geometry:
    """The geometry of one attention layer."""
    config: Any = model.config
    heads = config.num_attention_heads
    return Geometry(
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=_head_dim(layer),
        hidden=config.hidden_size,
        scaling=float(getattr(layer, "scaling", _head_dim(layer) ** -0.5)),
        layer=layer.layer_idx,
        rotary=any("rotary" in name for name, _ in model.named_modules()),
    )
