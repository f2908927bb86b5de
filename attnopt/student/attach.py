"""Swap mechanisms into a causal language model, in place and without modelling code, and take them out again.

transformers lets an attention function be registered by name. Ours (attnopt/student/attention.py) gets the layer, q, k
and v; around each attention layer's `forward` stands what it does not get: the layer's input and the cache.
"""

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

import attnopt
from attnopt.core.errors import UserError
from attnopt.mechanisms import load_mechanism
from attnopt.mechanisms.base import Mechanism
from attnopt.mechanisms.shared.composite import outermost
from attnopt.records.base import first_misfit
from attnopt.student import attention
from attnopt.student.budget import options_within
from attnopt.student.calls import watched
from attnopt.student.layers import attention_layers, describe_layer
from attnopt.student.state import StateCache
from attnopt.student.swap import Swap

NAME = "attnopt"
"""Of the attention function and its mask among transformers'."""


@dataclass
class Attachment:
    """What `attach` changed on a model, so that `detach` can take it back; it lies on the model as
    `attnopt_attachment`.

    Attributes:
        swaps: what was asked for, with all options as they were chosen.
        attention: the model's attention implementation before.
        use_cache: `config.use_cache` before. generates_with_cache: `generation_config.use_cache` before.
        hooks: on the model.
        patched: names of the model's methods that its own attributes hide.
    """

    swaps: list[Swap]
    attention: str
    use_cache: bool | None
    generates_with_cache: bool | None
    hooks: list[RemovableHandle] = field(default_factory=list)
    patched: list[str] = field(default_factory=list)


def attach(model: Any, swap: Swap | Sequence[Swap], seed: int = 0) -> Any:
    """Replace softmax in `model`'s attention layers by a mechanism, in place; the other layers keep softmax.

        teacher = AutoModelForCausalLM.from_pretrained("openai-community/gpt2")
        student = attach(copy.deepcopy(teacher), Swap("performer", {"features": 64}))
        student.generate(ids, max_new_tokens=40)    # decodes through the mechanism's own state
        detach(student)                             # softmax again
        attach(student, [Swap("window", layers=[0, 1]), Swap("performer", layers=[3])])    # some of each

    Args:
        model: a Hugging Face causal language model. Its config is changed, so it must not be shared with the teacher.
        swap: the mechanism, its options and the layers that it goes to; or several, no two of them for one layer. A
            budget of state is each one's own.
        seed: of what the mechanism draws at construction (random features).
    Returns: the same model; its mechanisms are `mechanisms_of(model)`.
    Raises: UserError where the model is swapped already, its architecture cannot be swapped, or the options do not fit
        the mechanism, the model or the budget of state. The model is then as it was.
    """
    if (before := attachment_of(model)) is not None:
        raise UserError(
            f"{type(model).__name__} is swapped already, to {', '.join(s.kind for s in before.swaps) or 'softmax'}: "
            "give it its softmax back with attnopt.detach(model) first"
        )
    layers = attention_layers(model)
    swaps = [_resolved(model, layers, one) for one in ([swap] if isinstance(swap, Swap) else swap)]
    mechanisms = _build_mechanisms(model, layers, swaps, seed)
    config, generation = model.config, model.generation_config
    made = Attachment(swaps, config._attn_implementation, getattr(config, "use_cache", None), generation.use_cache)
    model.attnopt_attachment = made
    try:
        for layer, mechanism in zip(layers, mechanisms, strict=True):
            _install(layer, mechanism, made)
        AttentionInterface.register(NAME, attention.attend)
        AttentionMaskInterface.register(NAME, attention.padding_mask)
        model.set_attn_implementation(NAME)
        _serve_own_cache(model, made)
        _patch(model, "save_pretrained", _save)
        check_swapped(model)
    except BaseException:
        detach(model)
        raise
    return model


def detach(model: Any) -> Any:
    """Give a swapped model its softmax back, in place: what `attach` added is taken away.

    Gone are the mechanisms with their parameters, the hook and the patched methods; the config's use_cache and
    attention implementation and the generation config are as before. The model's own weights stay as they are: those
    of a student that was trained are the trained ones.

        assert torch.equal(detach(attach(model, Swap("none")))(ids).logits, logits_before)

    Args:
        model: what `attach` returned, or a model that `attnopt.load` loaded.
    Returns: the same model.
    Raises: UserError where it is not swapped.
    """
    made = attachment_of(model)
    if made is None:
        raise UserError(f"{type(model).__name__} is not swapped: there is nothing to detach")
    for hook in made.hooks:
        hook.remove()
    for name in made.patched:
        delattr(model, name)
    for layer in model.modules():
        if isinstance(getattr(layer, "mechanism", None), Mechanism):
            own = layer.attnopt_forward
            del layer.mechanism, layer.attnopt_call, layer.attnopt_forward, layer.forward
            if own is not None:
                layer.forward = own
    model.set_attn_implementation(made.attention)
    model.config.use_cache = made.use_cache
    model.generation_config.use_cache = made.generates_with_cache
    del model.attnopt_attachment
    return model


def attachment_of(model: Any) -> Attachment | None:
    """What `attach` changed on the model; None where it is not swapped."""
    found = getattr(model, "attnopt_attachment", None)
    return found if isinstance(found, Attachment) else None


def mechanisms_of(model: nn.Module) -> list[Mechanism]:
    """The mechanisms of a swapped model, by layer; parts of them are none of their own."""
    return outermost(model.modules())


def resolve_swap(swap: Swap) -> tuple[type[Mechanism], Any]:
    """The mechanism's class and an instance of its Options.

    Raises: UserError that names the kind, where there is none of that name, or the option that does not fit.
    """
    try:
        cls = load_mechanism(swap.kind)
        return cls, cls.Options.model_validate(swap.options)
    except ValidationError as error:
        raise UserError(f"{swap.kind}: options: {first_misfit(error)}") from None
    except ValueError as error:
        raise UserError(str(error)) from None


@torch.no_grad()
def check_swapped(model: Any) -> None:
    """Run a few tokens and raise UserError unless every slot was really used: some architectures ignore the swap."""
    ran: list[int] = []
    found = mechanisms_of(model)
    with watched(found, after=lambda mechanism, *_: ran.append(mechanism.geometry.layer)):
        model(input_ids=torch.zeros(1, 3, dtype=torch.long, device=model.device), use_cache=False)
    if not found or sorted(ran) != [m.geometry.layer for m in found]:
        raise UserError(
            f"{type(model).__name__} cannot be swapped: {len(set(ran))} of {len(found)} layers ran the mechanism, "
            "its attention does not go through transformers' attention interface"
        )


def _resolved(model: Any, layers: list[nn.Module], swap: Swap) -> Swap:
    """The swap with an instance of its Options, sized to its budget by the first layer that it replaces."""
    cls, options = resolve_swap(swap)
    if unknown := set(swap.layers or ()) - set(range(len(layers))):
        raise UserError(f"layers: {sorted(unknown)} do not exist, the model has 0 to {len(layers) - 1}")
    first = layers[0 if swap.layers is None else min(swap.layers, default=0)]
    dtype = next(first.parameters()).dtype
    return replace(swap, options=options_within(cls, options, swap.state, describe_layer(model, first), dtype))


def _by_layer(swaps: Sequence[Swap], count: int) -> dict[int, Swap]:
    """Which swap is each layer's; those of none are left out. Raises UserError where one is of two."""
    found: dict[int, Swap] = {}
    for swap in swaps:
        own = set(range(count) if swap.layers is None else swap.layers)
        if twice := sorted(own & found.keys()):
            raise UserError(f"layers: {twice} are given both {found[twice[0]].kind} and {swap.kind}")
        found |= dict.fromkeys(own, swap)
    return found


def _build_mechanisms(model: Any, layers: list[nn.Module], swaps: Sequence[Swap], seed: int) -> list[Mechanism]:
    """A mechanism for every layer, softmax where none was asked for; the model is not touched."""
    chosen, softmax = _by_layer(swaps, len(layers)), Swap("softmax")
    built = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for i, layer in enumerate(layers):
            cls, options = resolve_swap(chosen.get(i, softmax))
            parameter = next(layer.parameters())
            try:
                mechanism = cls(describe_layer(model, layer), options)
            except (ValueError, RuntimeError, MemoryError, OverflowError) as error:
                reason = str(error).split("\n")[0]
                raise UserError(f"{cls.kind} does not fit {type(model).__name__}: {reason}") from None
            built.append(mechanism.to(parameter.device, parameter.dtype))
    return built


def _install(layer: Any, mechanism: Mechanism, made: Attachment) -> None:
    layer.mechanism = mechanism
    layer.attnopt_call = None
    own = layer.attnopt_forward = vars(layer).get("forward")  # such as accelerate's, which places weights
    forward = type(layer).forward if own is None else lambda _, *args, **kwargs: own(*args, **kwargs)
    layer.forward = types.MethodType(attention.noting(forward), layer)


def _serve_own_cache(model: Any, made: Attachment) -> None:
    """Make bare calls and bare `generate()` use a StateCache; without `use_cache=True` there is none."""
    model.config.use_cache = False
    model.generation_config.use_cache = True
    made.hooks.append(model.register_forward_pre_hook(_give_cache, with_kwargs=True))
    _patch(model, "_prepare_cache_for_generation", _prepare_cache)


def _give_cache(model: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    if kwargs.get("use_cache") and kwargs.get("past_key_values") is None:
        return args, {**kwargs, "past_key_values": StateCache(model.config.num_hidden_layers)}
    return None


def _prepare_cache(model: Any, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> None:
    if generation_config.cache_implementation is not None:
        raise UserError(f"cache_implementation={generation_config.cache_implementation!r} is not possible here")
    if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
        model_kwargs["past_key_values"] = StateCache(model.config.num_hidden_layers)


def _save(model: Any, *args: Any, **kwargs: Any) -> None:
    """In place of `save_pretrained`, whose folder would load as plain softmax, with no more than a warning."""
    attnopt.save(model, *args, **kwargs)


def _patch(model: Any, name: str, function: Callable[..., Any]) -> None:
    """Hide a method of the model's class by one of this model alone."""
    setattr(model, name, types.MethodType(function, model))
    model.attnopt_attachment.patched.append(name)
