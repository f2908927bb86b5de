"""Mixed students: layers of several variants, put together from the library, on disk and at work."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from families import IDS
from families import teacher as make_teacher
from torch import Tensor

import attnopt
from attnopt.core.errors import UserError
from attnopt.records.distill import MIXED, StudentCard
from attnopt.student.attach import attach, mechanisms_of
from attnopt.student.budget import state_share
from attnopt.student.files import save_student, swaps_of
from attnopt.student.layers import attention_layers
from attnopt.student.library import LibraryStudent, mixed_student, parts_of, read_library
from attnopt.student.params import StateParams
from attnopt.student.swap import Swap
from attnopt.teacher.model import load_teacher, teacher_fingerprint
from attnopt.teacher.params import TeacherParams

FREE = StateParams()
KINDS = {"window": {"window": 2, "sinks": 1}, "performer": {}, "hedgehog": {"window": 2}}


def card(model: Any, where: TeacherParams, kind: str, **more: Any) -> StudentCard:
    about = {"variant": f"my_{kind}", "control": None, "layers": None, "start": "teacher", "seed": 0, "key": ""}
    about |= {"kind": kind, "options": {}, "teacher": where.model_dump(), "fingerprint": teacher_fingerprint(model)}
    return StudentCard.model_validate(about | more)


@torch.no_grad()
def trained(model: Any, kind: str, seed: int) -> LibraryStudent:
    """A library student whose attention weights and mechanisms moved from the teacher's."""
    student = attach(copy.deepcopy(model), Swap(kind, KINDS[kind]), seed)
    torch.manual_seed(seed)
    for layer in attention_layers(student):
        for parameter in layer.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return LibraryStudent(card(model, TeacherParams(), kind), attention_layers(student))


def all_of(model: Any, students: list[LibraryStudent]) -> dict[int, LibraryStudent]:
    """A layer each, in turn."""
    return {i: students[i % len(students)] for i in range(len(attention_layers(model)))}


def test_several_swaps_go_to_their_layers_and_one_layer_is_not_given_two() -> None:
    model = make_teacher("gpt2")
    student = attach(copy.deepcopy(model), [Swap("none", layers=[2]), Swap("window", {"window": 3}, [0])])
    assert [m.kind for m in mechanisms_of(student)] == ["window", "softmax", "none"]
    with pytest.raises(UserError, match=r"layers: \[0\] are given both window and none"):
        attach(copy.deepcopy(model), [Swap("window", layers=[0, 1]), Swap("none", layers=[0])])
    with pytest.raises(UserError, match="swapped already, to none, window"):
        attach(student, Swap("none"))


@pytest.mark.parametrize("family", ["gpt2", "llama gqa"])
@torch.no_grad()
def test_softmax_in_every_layer_of_a_mix_is_the_teacher(family: str) -> None:
    model = make_teacher(family)
    untouched = attach(copy.deepcopy(model), Swap("softmax"))
    library = LibraryStudent(card(model, TeacherParams(), "softmax"), attention_layers(untouched))
    for blocks in ({}, all_of(model, [library])):
        torch.testing.assert_close(mixed_student(model, blocks, FREE)(IDS).logits, model(IDS).logits)


def outputs_of(layer: Any, hidden: Tensor) -> Tensor:
    return layer(hidden)[0]


@torch.no_grad()
def test_every_layer_of_a_mix_is_the_librarys_and_the_others_are_the_teachers() -> None:
    model = make_teacher("gpt2")
    students = [trained(model, kind, seed) for seed, kind in enumerate(KINDS)]
    blocks = {2: students[0], 0: students[1]}
    mix = mixed_student(model, blocks, FREE)
    assert [m.kind for m in mechanisms_of(mix)] == ["performer", "softmax", "window"]
    hidden = torch.randn(1, 9, model.config.hidden_size)
    for i, layer in enumerate(attention_layers(mix)):
        wanted = (
            blocks[i].layers[i] if i in blocks else attention_layers(attach(copy.deepcopy(model), Swap("softmax")))[i]
        )
        assert torch.equal(outputs_of(layer, hidden), outputs_of(wanted, hidden))
        assert not {t.data_ptr() for t in layer.parameters()} & {t.data_ptr() for t in wanted.parameters()}
    others = [n for n, t in mix.state_dict().items() if n in model.state_dict() and ".attn." not in n]
    assert others
    assert all(torch.equal(mix.state_dict()[n], model.state_dict()[n]) for n in others)


@pytest.mark.parametrize("family", ["gpt2", "llama gqa"])
@torch.no_grad()
def test_a_mix_decodes_through_its_state_as_it_runs(family: str) -> None:
    model = make_teacher(family)
    mix = mixed_student(model, all_of(model, [trained(model, kind, 1) for kind in KINDS]), FREE)
    whole, cache, steps = mix(IDS).logits, None, []
    for token in IDS.split(1, dim=1):
        out = mix(token, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=2e-5)
    declared = sum(m.state_bytes(len(IDS), IDS.shape[1], mix.dtype) for m in mechanisms_of(mix))
    assert mix(IDS, use_cache=True).past_key_values.state_bytes() == declared


def test_the_budget_is_of_the_whole_model() -> None:
    model = make_teacher("gpt2")
    window = LibraryStudent(
        card(model, TeacherParams(), "window"),
        attention_layers(attach(copy.deepcopy(model), Swap("window", {"window": 6, "sinks": 1}))),
    )
    one_exact = {1: window, 2: window}  # layer 0 keeps softmax, a window the last 5 and the first
    whole = (1 + 2 * 6 / 64) / 3
    mix = mixed_student(model, one_exact, StateParams(share=whole, length=64))
    assert state_share(mechanisms_of(mix), 64, torch.float32) == pytest.approx(whole)
    with pytest.raises(
        UserError, match=r"hold 0\.3958 of softmax's state at 64 tokens, and state\.share allows 0\.39$"
    ):
        mixed_student(model, one_exact, StateParams(share=0.39, length=64))
    with pytest.raises(UserError, match=r"layers: \[3, 9\] do not exist, the model has 0 to 2"):
        mixed_student(model, {3: window, 9: window}, FREE)


def test_what_trains_reaches_every_layer() -> None:
    from attnopt.student.build import choose_trainable

    model = make_teacher("gpt2")
    mix = mixed_student(model, all_of(model, [trained(model, kind, 1) for kind in KINDS]), FREE)
    found = choose_trainable(mix, "attention")
    mix(IDS, labels=IDS).loss.backward()
    moved = {name for name, p in found.named().items() if p.grad is not None and p.grad.abs().sum() > 0}
    for i in range(3):
        assert any(f".{i}.attn.c_proj" in name for name in moved)
    assert any(".1.attn.mechanism." in name for name in found.own)
    assert {name for name in found.own if ".2.attn.mechanism." in name} <= moved


@pytest.fixture
def library(workspace: Any) -> tuple[Any, TeacherParams, list[Path]]:
    """The tiny teacher, and two students of the library on disk."""
    where = TeacherParams(source="path", path="teacher")
    model, _ = load_teacher(where)
    folders = []
    for seed, kind in enumerate(("window", "performer")):
        student = attach(copy.deepcopy(model), Swap(kind, layers=[seed]), seed)
        with torch.no_grad():
            attention_layers(student)[seed].c_proj.weight.add_(0.1)  # type: ignore[union-attr, operator]
        folders.append(Path("library") / kind)
        options = mechanisms_of(student)[seed].options.model_dump()
        save_student(folders[-1], student, model, card(model, where, kind, options=options, layers=[seed]))
    return model, where, folders


@torch.no_grad()
def test_a_mix_on_disk_is_the_same_to_the_bit_and_says_what_it_is_made_of(library: Any) -> None:
    model, where, folders = library
    window, performer = (read_library(folder, model) for folder in folders)
    blocks = {0: window, 1: performer}
    mix = mixed_student(model, blocks, FREE)
    parts = parts_of(blocks)
    assert [(p.variant, p.kind, p.layers) for p in parts] == [
        ("my_window", "window", [0]),
        ("my_performer", "performer", [1]),
    ]
    described = card(model, where, MIXED, variant="mix", parts=[p.model_dump() for p in parts])
    assert described.kinds == ["performer", "window"]
    assert [swap.kind for swap in swaps_of(described)] == ["window", "performer"]
    save_student(Path("models/mix/0"), mix, model, described)
    again, ids = attnopt.load("models/mix/0"), torch.arange(1, 12)[None]
    assert [m.kind for m in mechanisms_of(again)] == ["window", "performer"]
    assert torch.equal(again(ids).logits, mix(ids).logits)
    assert again.generate(ids, max_new_tokens=4, do_sample=False).shape[1] > ids.shape[1]


@torch.no_grad()
def test_a_layer_that_its_variant_left_as_softmax_is_softmax_in_a_mix(library: Any) -> None:
    model, _, folders = library
    window, _ = (read_library(folder, model) for folder in folders)
    mix = mixed_student(model, {1: window}, FREE)
    assert [m.kind for m in mechanisms_of(mix)] == ["softmax", "softmax"]
    assert [(p.variant, p.kind) for p in parts_of({0: window, 1: window})] == [
        ("my_window", "window"),
        ("my_window", "softmax"),
    ]
