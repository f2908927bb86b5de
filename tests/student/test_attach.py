"""The swap, on tiny models of several families: equal to the teacher with softmax, refused where it cannot work."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf

from attnopt.core.errors import UserError
from attnopt.mechanisms import mechanism_names
from attnopt.student.attach import attach, check_swapped, mechanisms_of
from attnopt.student.state import StateCache
from attnopt.student.swap import Swap

COMMON = {"vocab_size": 99, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LLAMA = {**COMMON, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
GPT2 = {**COMMON, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}
FAMILIES: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "gpt2 scaled by layer": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True)),
    "llama gqa": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, num_key_value_heads=2)),
    "llama mqa": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, num_key_value_heads=1)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**LLAMA, num_key_value_heads=2)),
    "gpt-neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**LLAMA)),
}
IDS = torch.randint(1, 99, (2, 11), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones_like(IDS)
PADDED[0, :4] = 0


def pair(family: str, kind: str = "softmax") -> tuple[Any, Any]:
    torch.manual_seed(0)
    teacher = FAMILIES[family]().eval()
    return teacher, attach(copy.deepcopy(teacher), Swap(kind))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_softmax_through_the_slot_is_the_teacher(family: str) -> None:
    teacher, student = pair(family)
    torch.testing.assert_close(student(IDS).logits, teacher(IDS).logits, rtol=0, atol=1e-6)
    ours, theirs = (m(IDS, attention_mask=PADDED).logits[PADDED.bool()] for m in (student, teacher))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", [{"do_sample": False}, {"num_beams": 3}, {"do_sample": True}], ids=str)
def test_generation_with_state_equals_generation_without_and_the_teachers(family: str, way: dict) -> None:
    teacher, student = pair(family)
    runs = [(teacher, True), (student, True), (student, False)]
    texts = []
    for model, cached in runs:
        torch.manual_seed(1)
        options = {"max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0, "use_cache": cached}
        texts.append(model.generate(IDS, attention_mask=PADDED, **options, **way))
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[1], texts[2])


@torch.no_grad()
def test_a_padded_row_equals_the_row_alone() -> None:
    _, student = pair("gpt2")
    positions = (PADDED.cumsum(1) - 1).clamp(min=0)
    padded = student(IDS, attention_mask=PADDED, position_ids=positions).logits
    torch.testing.assert_close(padded[0, 4:], student(IDS[:1, 4:]).logits[0], rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_teacher_is_untouched_by_the_swap() -> None:
    torch.manual_seed(0)
    teacher = FAMILIES["gpt2"]().eval()
    before = teacher(IDS).logits
    student = attach(copy.deepcopy(teacher), Swap("none"))
    assert torch.equal(teacher(IDS).logits, before)
    assert not torch.allclose(student(IDS).logits, before)


@torch.no_grad()
def test_layers_choose_where_the_mechanism_goes() -> None:
    torch.manual_seed(0)
    teacher = FAMILIES["gpt2"]().eval()
    student = attach(copy.deepcopy(teacher), Swap("none", layers=[1]))
    assert [m.kind for m in mechanisms_of(student)] == ["softmax", "none", "softmax"]
    with pytest.raises(UserError, match=r"layers: \[7\] do not exist, the model has 0 to 2"):
        attach(copy.deepcopy(teacher), Swap("none", layers=[7]))


@torch.no_grad()
def test_a_reset_cache_is_a_fresh_one_and_a_foreign_cache_is_refused() -> None:
    _, student = pair("llama gqa")
    fresh = student(IDS, use_cache=True)
    cache = fresh.past_key_values
    assert isinstance(cache, StateCache)
    assert cache.get_seq_length() == IDS.shape[1]
    assert cache.state_bytes() == sum(m.state_bytes(2, IDS.shape[1], torch.float32) for m in mechanisms_of(student))
    cache.reset()
    assert torch.equal(student(IDS, use_cache=True, past_key_values=cache).logits, fresh.logits)
    with pytest.raises(UserError, match="not DynamicCache"):
        student(IDS, use_cache=True, past_key_values=hf.DynamicCache())


@pytest.mark.parametrize("kind", mechanism_names())
@torch.no_grad()
def test_the_state_is_no_larger_than_declared_behind_a_fused_projection(kind: str) -> None:
    """GPT-2 cuts q, k and v from one tensor: a state that keeps views of them holds three times its size."""
    _, student = pair("gpt2", kind)
    cache = student(IDS, use_cache=True).past_key_values
    assert cache.state_bytes() == sum(m.state_bytes(2, IDS.shape[1], torch.float32) for m in mechanisms_of(student))


@torch.no_grad()
def test_cache_rows_can_be_repeated_and_selected() -> None:
    _, student = pair("gpt2")
    cache = student(IDS, use_cache=True).past_key_values
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0]))
    next_ids = torch.tensor([[5], [6]])
    ours = student(next_ids, use_cache=True, past_key_values=cache).logits[:, -1]
    whole = student(torch.cat([IDS[[1, 0]], next_ids], 1)).logits[:, -1]
    torch.testing.assert_close(ours, whole, rtol=0, atol=1e-5)


UNSWAPPABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "falcon": (lambda: hf.FalconForCausalLM(hf.FalconConfig(**{k: v for k, v in LLAMA.items() if k != "intermediate_size"})), "0 of 3 layers ran"),
    "gptj": (lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**{**GPT2, "rotary_dim": 4})), "0 of 3 layers ran"),
    "bloom": (lambda: hf.BloomForCausalLM(hf.BloomConfig(**{**COMMON, "hidden_size": 32, "n_layer": 3, "n_head": 4})), "0 of 3 layers go"),
    "sliding": (lambda: hf.MistralForCausalLM(hf.MistralConfig(**LLAMA, num_key_value_heads=2, sliding_window=8)), "not full attention"),
}  # fmt: skip


@pytest.mark.parametrize("family", UNSWAPPABLE)
def test_what_cannot_be_swapped_is_refused_by_name(family: str) -> None:
    make, reason = UNSWAPPABLE[family]
    with pytest.raises(UserError, match=f"ForCausalLM cannot be swapped: .*{reason}"):
        attach(make().eval(), Swap("softmax"))


def test_a_packed_batch_is_refused() -> None:
    _, student = pair("llama gqa")
    packed = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6]] * 2)
    with pytest.raises(UserError, match="packed documents"):
        student(IDS, position_ids=packed)


def test_a_slot_that_is_not_used_is_noticed() -> None:
    _, student = pair("gpt2")
    student.set_attn_implementation("sdpa")
    with pytest.raises(UserError, match="0 of 3 layers ran the mechanism"):
        check_swapped(student)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", mechanism_names())
def test_a_student_trains_under_autocast(family: str, kind: str) -> None:
    _, student = pair(family, kind)
    with torch.autocast("cpu", torch.bfloat16):
        loss = student(IDS, labels=IDS).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)
