"""A swap undone: the model is what it was, and can be swapped, saved and run as before."""

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from families import FAMILIES, IDS, PADDED, UNSWAPPABLE, pair
from families import teacher as make_teacher

import attnopt
from attnopt.core.errors import UserError
from attnopt.student.attach import attach, attachment_of, detach, mechanisms_of
from attnopt.student.swap import Swap

GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": PADDED}


def traces(model: Any) -> list[tuple]:
    """All that a swap may leave on a model: hooks, attributes, configuration."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
             "_forward_hooks_always_called", "_backward_hooks")  # fmt: skip
    of_modules = [
        (name, sorted(vars(module)), sorted(module._modules), [len(getattr(module, hook)) for hook in hooks])
        for name, module in model.named_modules()
    ]
    configs = (model.config.to_dict(), model.config._attn_implementation, model.generation_config.to_dict())
    return [*of_modules, configs]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_detached_model_is_the_original_to_the_bit(family: str) -> None:
    original, model = pair(family, "none")
    assert not torch.allclose(model(IDS).logits, original(IDS).logits)
    assert detach(model) is model
    assert torch.equal(model(IDS, attention_mask=PADDED).logits, original(IDS, attention_mask=PADDED).logits)
    assert list(model.state_dict()) == list(original.state_dict())
    assert traces(model) == traces(original)
    assert (mechanisms_of(model), attachment_of(model)) == ([], None)
    assert torch.equal(model.generate(IDS, **GREEDY), original.generate(IDS, **GREEDY))


@torch.no_grad()
def test_a_model_can_be_swapped_again_once_it_is_detached() -> None:
    original, model = pair("gpt2", "none")
    with pytest.raises(UserError, match=r"swapped already, to none: .*attnopt\.detach\(model\)") as caught:
        attach(model, Swap("softmax"))
    assert "\n" not in str(caught.value)
    assert [m.kind for m in mechanisms_of(model)] == ["none"] * 3
    attach(detach(model), Swap("softmax"))
    torch.testing.assert_close(model(IDS).logits, original(IDS).logits, rtol=0, atol=1e-6)
    assert torch.equal(model.generate(IDS, **GREEDY), original.generate(IDS, **GREEDY))
    assert traces(detach(model)) == traces(original)


@torch.no_grad()
def test_a_forward_of_a_layers_own_still_runs_and_comes_back() -> None:
    original, model = pair("llama gqa", "softmax")
    detach(model)
    layer, calls = model.model.layers[1].self_attn, []
    within = layer.forward

    def own(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(args))
        return within(*args, **kwargs)

    layer.forward = own
    attach(model, Swap("softmax"))
    torch.testing.assert_close(model(IDS).logits, original(IDS).logits, rtol=0, atol=1e-6)
    assert len(calls) == 2  # the check of the swap, and this call
    detach(model)
    assert vars(layer)["forward"] is own


def test_what_is_not_swapped_cannot_be_detached() -> None:
    with pytest.raises(UserError, match="GPT2LMHeadModel is not swapped"):
        detach(make_teacher("gpt2"))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_settings_of_before_come_back(implementation: str) -> None:
    model = make_teacher("gpt2")
    model.set_attn_implementation(implementation)
    model.config.use_cache, model.generation_config.use_cache = True, False
    before = traces(model)
    detach(attach(model, Swap("window")))
    assert model.config._attn_implementation == implementation
    assert traces(model) == before


@torch.no_grad()
def test_weights_that_were_trained_stay_trained() -> None:
    original, model = pair("gpt2", "none")
    model.transformer.h[0].attn.c_proj.weight.add_(0.5)
    original.transformer.h[0].attn.c_proj.weight.add_(0.5)
    assert torch.equal(detach(model)(IDS).logits, original(IDS).logits)


@torch.no_grad()
def test_a_copy_is_detached_by_itself() -> None:
    original, model = pair("llama gqa", "none")
    swapped = model(IDS).logits
    other = detach(copy.deepcopy(model))
    assert torch.equal(other(IDS).logits, original(IDS).logits)
    assert torch.equal(model(IDS).logits, swapped)
    assert model.generate(IDS, **GREEDY).shape[1] > IDS.shape[1]
    assert traces(detach(model)) == traces(original)


@pytest.mark.parametrize("family", UNSWAPPABLE)
def test_a_refused_model_is_left_as_it_was(family: str) -> None:
    model = UNSWAPPABLE[family][0]().eval()
    before, names = traces(model), list(model.state_dict())
    with pytest.raises(UserError, match="cannot be swapped"):
        attach(model, Swap("softmax"))
    assert traces(model) == before
    assert list(model.state_dict()) == names


def test_a_student_is_not_saved_as_if_it_were_softmax(tmp_path) -> None:
    original, model = pair("gpt2", "none")
    model.save_pretrained(tmp_path / "student")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        hf.AutoModelForCausalLM.from_pretrained(tmp_path / "student", trust_remote_code=False)
    torch.testing.assert_close(attnopt.load(tmp_path / "student")(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)
    detach(model).save_pretrained(tmp_path / "plain")
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.equal(loaded(IDS).logits, original(IDS).logits)
