"""Students whose mechanisms are made of others: one mechanism a layer, kept on disk, trained with their extra loss."""

from pathlib import Path

import pytest
import torch

import attnopt
from attnopt import settings as params
from attnopt.records.distill import StudentCard, kinds_in
from attnopt.student.attach import mechanisms_of
from attnopt.student.build import build_student, fit_mechanisms
from attnopt.student.files import save_student
from attnopt.student.params import StateParams
from attnopt.student.swap import Swap
from attnopt.teacher.model import load_teacher, teacher_fingerprint

IDS = torch.arange(1, 40)[None]
OPTIONS = {
    "heads": {"share": 0.5, "kept": {"kind": "quantised", "options": {"bits": 4}}, "rest": "window"},
    "mixture": {"experts": ["window", {"kind": "hedgehog", "options": {"window": 4}}], "start": 0.6},
}


@pytest.mark.parametrize("kind", OPTIONS)
@torch.no_grad()
def test_a_student_is_the_same_when_it_is_loaded_and_decodes_through_its_state(workspace, kind: str) -> None:
    settings = params.load_settings()
    model, _ = load_teacher(settings.teacher)
    student = build_student(model, Swap(kind, OPTIONS[kind], state=StateParams(share=0.5, length=256)), seed=0)
    fit_mechanisms(student, model, IDS.numpy())
    found = mechanisms_of(student)
    assert len(found) == model.config.num_hidden_layers
    assert {m.kind for m in found} == {kind}
    options = found[0].options.model_dump()
    card = StudentCard(
        variant=kind, kind=kind, control=None, options=options, layers=None, start="teacher", seed=0,
        teacher=settings.teacher.model_dump(), fingerprint=teacher_fingerprint(model), key="",
    )  # fmt: skip
    save_student(Path("models/it"), student, model, card)
    loaded = attnopt.load("models/it")
    logits = student(IDS).logits
    assert torch.equal(loaded(IDS).logits, logits)
    cache = loaded(IDS[:, :30], use_cache=True).past_key_values
    torch.testing.assert_close(
        loaded(IDS[:, 30:], past_key_values=cache, use_cache=True).logits, logits[:, 30:], rtol=1e-3, atol=1e-4
    )
    parts = {"heads": ["quantised", "window"], "mixture": ["hedgehog", "window"]}
    assert StudentCard.read(Path("models/it/student.json")).kinds == sorted([kind, *parts[kind]])


def test_a_card_names_what_a_student_is_made_of() -> None:
    from attnopt.mechanisms import load_mechanism

    made = {kind: load_mechanism(kind).Options(**options).model_dump() for kind, options in OPTIONS.items()}
    assert kinds_in(made["heads"]) == {"quantised", "window"}
    assert kinds_in(made["mixture"]) == {"window", "hedgehog"}
    assert kinds_in({"window": 4, "options": {"kind": 3}, "heads": None}) == set()
