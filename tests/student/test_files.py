"""A student on disk: small, whole, and refused where it does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import attnopt
from attnopt import settings as params
from attnopt.core.errors import UserError
from attnopt.records.distill import StudentCard
from attnopt.student import build as students
from attnopt.student import files as delta
from attnopt.student.attach import mechanisms_of
from attnopt.student.swap import Swap
from attnopt.teacher import model as teacher
from attnopt.teacher.params import TeacherParams

IDS = torch.arange(1, 12)[None]


def save(folder: Path, student: Any, model: Any, where: TeacherParams, kind: str) -> None:
    card = StudentCard(
        variant=kind,
        kind=kind,
        control=None,
        options=mechanisms_of(student)[0].options.model_dump(),
        layers=None,
        start="teacher",
        seed=0,
        teacher=where.model_dump(),
        fingerprint=teacher.teacher_fingerprint(model),
        key="",
    )
    delta.save_student(folder, student, model, card)


@pytest.fixture
def saved(workspace) -> Path:
    """A student `none` whose attention weights moved."""
    settings = params.load_settings()
    model, _ = teacher.load_teacher(settings.teacher)
    student = students.build_student(model, settings.variant("none").swap, seed=0)
    with torch.no_grad():
        student.transformer.h[0].attn.c_proj.weight.add_(0.1)
    folder = workspace.path / "models" / "none" / "0"
    save(folder, student, model, settings.teacher, "none")
    saved_logits = student(IDS).logits
    torch.save(saved_logits, workspace.path / "logits.pt")
    return folder


def test_only_what_changed_is_saved_and_the_loaded_student_is_the_same(saved: Path) -> None:
    assert list(load_file(saved / "weights.safetensors")) == ["transformer.h.0.attn.c_proj.weight"]
    student = attnopt.load(saved)
    assert torch.equal(student(IDS).logits, torch.load("logits.pt"))
    assert student.generate(IDS, max_new_tokens=4, do_sample=False).shape[1] > IDS.shape[1]
    assert student.tokenizer.decode([5])


def test_a_student_of_another_teacher_is_refused(saved: Path) -> None:
    model, _ = teacher.load_teacher(params.load_settings().teacher)
    model.transformer.wte.weight.add_(0.01)
    model.save_pretrained("teacher")
    with pytest.raises(UserError, match="student of another teacher"):
        attnopt.load(saved)


def test_damaged_students_are_refused_by_file(saved: Path) -> None:
    weights = saved / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(UserError, match=r"weights.safetensors is damaged"):
        attnopt.load(saved)
    weights.unlink()
    with pytest.raises(UserError, match=r"weights.safetensors is missing"):
        attnopt.load(saved)
    (saved / "student.json").write_text("{")
    with pytest.raises(UserError, match=r"student.json is damaged"):
        attnopt.load(saved)
    with pytest.raises(UserError, match="is no student"):
        attnopt.load(saved.parent)


def test_a_student_of_another_format_or_mechanism_is_refused(saved: Path) -> None:
    description = json.loads((saved / "student.json").read_text())
    for change, expected in {"format": (99, "format is 99"), "kind": ("magic", "unknown mechanism 'magic'"), "options": ({"x": 1}, "does not fit")}.items():  # fmt: skip
        (saved / "student.json").write_text(json.dumps(description | {change: expected[0]}))
        with pytest.raises(UserError, match=expected[1]):
            attnopt.load(saved)


def test_an_incomplete_or_foreign_card_is_refused_by_file_and_key(saved: Path) -> None:
    card = json.loads((saved / "student.json").read_text())
    for change, expected in (
        ({"fingerprint": None}, r"student\.json: 'fingerprint' is None"),
        ({"layers": "all"}, r"student\.json: 'layers' is 'all'"),
        ({"code": "x"}, r"student\.json: unknown key 'code'"),
        ({"teacher": card["teacher"] | {"source": "moon"}}, r"student\.json: 'teacher\.source' is 'moon'"),
        ({"teacher": {"source": "path"}}, r"student\.json: 'teacher' is .* needs the key 'path'"),
        ({"layers": [9]}, r"student\.json does not fit this version: layers: \[9\] do not exist"),
    ):
        (saved / "student.json").write_text(json.dumps(card | change))
        with pytest.raises(UserError, match=expected) as caught:
            attnopt.load(saved)
        assert "\n" not in str(caught.value)
    for key in ("kind", "teacher", "fingerprint", "start"):
        (saved / "student.json").write_text(json.dumps({k: v for k, v in card.items() if k != key}))
        with pytest.raises(UserError, match=rf"student\.json: '{key}' is missing"):
            attnopt.load(saved)
    (saved / "student.json").write_text("[]")
    with pytest.raises(UserError, match=r"student\.json: its format is 'list'"):
        attnopt.load(saved)


@pytest.mark.parametrize("kind", ["none", "softmax", "window", "performer", "masks"])
def test_a_loaded_student_can_be_trained(workspace, kind: str) -> None:
    settings = params.load_settings()
    model, _ = teacher.load_teacher(settings.teacher)
    save(workspace.path / "s", students.build_student(model, Swap(kind), 0), model, settings.teacher, kind)
    student = attnopt.load(workspace.path / "s")
    assert not student.training
    student(IDS, labels=IDS).loss.backward()
    names = [name for name, p in student.named_parameters() if p.requires_grad and p.grad is not None]
    assert len(names) > 10
    assert all(p.requires_grad for p in student.parameters())
    assert kind not in ("performer", "masks") or any(".mechanism." in name for name in names)


def test_a_loaded_student_can_be_detached_into_its_teacher(saved: Path) -> None:
    model, _ = teacher.load_teacher(params.load_settings().teacher)
    model.transformer.h[0].attn.c_proj.weight.add_(0.1)
    assert torch.equal(attnopt.detach(attnopt.load(saved))(IDS).logits, model(IDS).logits)
