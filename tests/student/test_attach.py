"""The swap, on tiny models of several families: equal to the teacher with softmax, refused where it cannot work."""

import copy

import pytest
import torch
import transformers as hf
from families import FAMILIES, IDS, PADDED, UNSWAPPABLE, pair
from families import teacher as make_teacher

from attnopt.core.errors import UserError
from attnopt.mechanisms import load_mechanism, mechanism_names
from attnopt.student.attach import attach, check_swapped, mechanisms_of
from attnopt.student.state import StateCache
from attnopt.student.swap import Swap


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
    teacher = make_teacher("gpt2")
    before = teacher(IDS).logits
    student = attach(copy.deepcopy(teacher), Swap("none"))
    assert torch.equal(teacher(IDS).logits, before)
    assert not torch.allclose(student(IDS).logits, before)


@torch.no_grad()
def test_layers_choose_where_the_mechanism_goes() -> None:
    teacher = make_teacher("gpt2")
    student = attach(copy.deepcopy(teacher), Swap("none", layers=[1]))
    assert [m.kind for m in mechanisms_of(student)] == ["softmax", "none", "softmax"]
    with pytest.raises(UserError, match=r"layers: \[7\] do not exist, the model has 0 to 2"):
        attach(copy.deepcopy(teacher), Swap("none", layers=[7]))


def test_options_are_an_instance_or_a_mapping_and_are_checked() -> None:
    teacher = make_teacher("gpt2")
    options = load_mechanism("window").Options(window=4)
    for swap in (Swap("window", options), Swap("window", {"window": 4})):
        assert mechanisms_of(attach(copy.deepcopy(teacher), swap))[0].options == options
    assert mechanisms_of(attach(copy.deepcopy(teacher), Swap("window")))[0].options == type(options)()
    for swap, reason in (
        (Swap("window", {"windw": 4}), r"window: options: unknown key 'windw'"),
        (Swap("window", {"window": 0}), r"window: options: 'window' is 0: input should be"),
        (Swap("windw"), r"unknown mechanism 'windw' \(did you mean window\?\)"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            attach(copy.deepcopy(teacher), swap)
        assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize("kind", ["softmax", "nsa", "window"])
@torch.no_grad()
def test_a_cache_that_grew_in_place_can_be_copied_and_its_rows_picked(kind: str) -> None:
    _, student = pair("llama gqa", kind)
    ids = torch.randint(90, (2, 24), generator=torch.Generator().manual_seed(0))
    cache = student(ids[:, :17], use_cache=True).past_key_values
    for token in ids[:, 17:].split(1, 1):
        student(token, use_cache=True, past_key_values=cache)
    twin, order = copy.deepcopy(cache), torch.tensor([1, 1])
    cache.reorder_cache(order)
    for new, own, text in ((torch.tensor([[5], [6]]), cache, ids[order]), (torch.tensor([[7], [8]]), twin, ids)):
        ours = student(new, use_cache=True, past_key_values=own).logits[:, -1]
        whole = student(torch.cat([text, new], 1)).logits[:, -1]
        torch.testing.assert_close(ours, whole, rtol=0, atol=1e-5)


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
