"""A student on disk: a card that describes it (student.json), and the weights that differ from its teacher's.

Reading one needs its teacher: the card says how that is loaded, and the fingerprint whether it is the same.
"""

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attnopt.core.distributed import whole
from attnopt.core.errors import UserError
from attnopt.records.base import Row, first_misfit
from attnopt.records.distill import MIXED, StudentCard
from attnopt.student.attach import attach
from attnopt.student.swap import Swap
from attnopt.teacher.model import load_teacher, teacher_fingerprint
from attnopt.teacher.params import TeacherParams

CARD, WEIGHTS = "student.json", "weights.safetensors"
AGAIN = "run `dvc repro distill` again"


def changed_weights(student: nn.Module, teacher: nn.Module, keeps: bool = True) -> dict[str, Tensor]:
    """The student's tensors that the teacher lacks or holds with other values, by name; tied tensors once.

    Of sharded models the whole tensors: all processes call it together, and those that need none keep none.
    """
    original = teacher.state_dict()
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in student.state_dict().items():
        gathered = whole(tensor)
        if name in original and torch.equal(gathered, whole(original[name])):
            continue
        tied = gathered is tensor and tensor.data_ptr() in seen and tensor.numel()
        if keeps and not tied:
            kept[name] = gathered.detach().cpu().contiguous().clone()
        if gathered is tensor:
            seen.add(tensor.data_ptr())
    return kept


def save_student(folder: Path, student: nn.Module, teacher: nn.Module, card: StudentCard) -> None:
    """Write a student's weights.safetensors and student.json into `folder`.

    Args:
        teacher: what the student was built from, with its weights as they were.
        card: what `load_student` needs beside the weights; its fingerprint is `teacher_fingerprint(teacher)`.
    """
    write_student(folder, changed_weights(student, teacher), card)


def write_student(folder: Path, weights: dict[str, Tensor], card: StudentCard) -> None:
    """The same from what `changed_weights` gave."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / WEIGHTS)
    card.write(folder / CARD)


def load_student(folder: str | Path, device: str | torch.device = "cpu") -> Any:
    """A working Hugging Face model with `generate()` from a student's folder; its tokenizer is `model.tokenizer`.

    It is in eval mode, and its parameters are trainable, as those of any `from_pretrained`.

    Raises: UserError, one line that names the file, where the student is damaged or incomplete, was written by another
        version, or belongs to another teacher.
    """
    folder = Path(folder)
    card = read_card(folder)
    model, tokenizer = load_teacher(_teacher_of(card, folder))
    apply_student(model, folder, card)
    model.tokenizer = tokenizer
    return model.requires_grad_(True).to(device)


def read_card(folder: Path) -> StudentCard:
    """The description of the student in `folder`.

    Raises: UserError, one line that names the file and the key, where it is missing, damaged or incomplete.
    """
    if not (folder / CARD).is_file():
        raise UserError(f"{folder} is no student: it has no {CARD}")
    return StudentCard.read(folder / CARD)


def swaps_of(card: StudentCard) -> list[Swap]:
    """What replaces softmax in a student, and in which layers."""
    if card.kind == MIXED:
        return [Swap(part.kind, part.options, part.layers) for part in card.parts]
    return [Swap(card.kind, card.options, card.layers, card.start)]


def apply_student(model: Any, folder: Path, card: StudentCard) -> Any:
    """Turn a freshly loaded teacher into the student of `folder`, in place; returns it.

    Raises: UserError, one line that names the file, where it is another teacher, or the student does not fit it.
    """
    if (found := teacher_fingerprint(model)) != card.fingerprint:
        expected = card.fingerprint
        raise UserError(f"{folder} is a student of another teacher: {expected[:12]}, this one is {found[:12]}")
    try:
        weights = load_file(folder / WEIGHTS)
    except FileNotFoundError:
        raise UserError(f"{folder / WEIGHTS} is missing: distil this student again") from None
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS} is damaged ({error}): distil this student again") from None
    try:
        attach(model, swaps_of(card))
    except UserError as error:
        raise UserError(f"{folder / CARD} does not fit this version: {error}") from None
    _load_strictly(model, weights, folder)
    return model


class _TeacherOfCard(Row):
    """The card's key `teacher`, read with its keys' names."""

    teacher: TeacherParams


def _teacher_of(card: StudentCard, folder: Path) -> TeacherParams:
    try:
        return _TeacherOfCard.model_validate({"teacher": card.teacher}).teacher
    except ValidationError as error:
        raise UserError(f"{folder / CARD}: {first_misfit(error)}: {AGAIN}") from None


def _load_strictly(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    own = model.state_dict()
    added = {name for name in own if ".mechanism." in name}
    wrong = [n for n, t in weights.items() if n not in own or own[n].shape != t.shape]
    if missing := sorted(added - weights.keys()) or wrong:
        raise UserError(f"{folder / WEIGHTS} does not fit the model at {missing[0]}: distil it again")
    model.load_state_dict(weights, strict=False)
