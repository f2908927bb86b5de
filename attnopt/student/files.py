"""A student on disk: only what differs from its teacher, plus the teacher's fingerprint."""

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attnopt import mechanisms
from attnopt.core.errors import UserError
from attnopt.core.files import read_json, write_json
from attnopt.student.attach import attach
from attnopt.teacher import model as teachers
from attnopt.teacher.params import TeacherParams

FORMAT = 1


def changed_weights(student: nn.Module, teacher: nn.Module) -> dict[str, Tensor]:
    """The student's tensors that the teacher lacks or holds with other values; tied tensors once."""
    original = teacher.state_dict()
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in student.state_dict().items():
        if name in original and torch.equal(tensor, original[name]):
            continue
        if tensor.data_ptr() not in seen or not tensor.numel():
            kept[name] = tensor.detach().cpu().contiguous().clone()
        seen.add(tensor.data_ptr())
    return kept


def save_student(folder: Path, student: nn.Module, teacher: nn.Module, description: dict[str, Any]) -> None:
    """Write weights.safetensors and student.json into `folder`.

    Args:
        description: kind, options, layers, and the teacher's params under `teacher`.
    """
    write_student(folder, changed_weights(student, teacher), teachers.teacher_fingerprint(teacher), description)


def write_student(folder: Path, weights: dict[str, Tensor], fingerprint: str, description: dict[str, Any]) -> None:
    """The same from what `changed` gave and the teacher's fingerprint."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "weights.safetensors")
    write_json(folder / "student.json", {"format": FORMAT, "fingerprint": fingerprint, **description})


def load_student(folder: str | Path, device: str = "cpu") -> Any:
    """A working Hugging Face model with `generate()` from a student's folder; its tokenizer is `model.tokenizer`.

    Raises: UserError where the student is damaged, of another teacher, or of another version of its mechanism.
    """
    folder = Path(folder)
    if not (folder / "student.json").is_file():
        raise UserError(f"{folder} is no student: it has no student.json")
    description = read_json(folder / "student.json")
    if description.get("format") != FORMAT:
        raise UserError(f"{folder}/student.json has format {description.get('format')}, this version reads {FORMAT}")
    model, tokenizer = teachers.load_teacher(TeacherParams.model_validate(description["teacher"]))
    apply_student(model, folder, description)
    model.tokenizer = tokenizer
    return model.to(device)


def apply_student(model: Any, folder: Path, description: dict[str, Any]) -> Any:
    """Turn a freshly loaded teacher into the student of `folder`, in place."""
    if (found := teachers.teacher_fingerprint(model)) != description["fingerprint"]:
        expected = description["fingerprint"]
        raise UserError(f"{folder} is a student of another teacher: {expected[:12]}, this one is {found[:12]}")
    try:
        cls = mechanisms.load_mechanism(description["kind"])
        options = cls.Options.model_validate(description["options"])
        weights = load_file(folder / "weights.safetensors")
    except FileNotFoundError:
        raise UserError(f"{folder}/weights.safetensors is missing: distil this student again") from None
    except SafetensorError as error:
        raise UserError(f"{folder}/weights.safetensors is damaged ({error}): distil this student again") from None
    except (ValidationError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{folder} does not fit this version's mechanism: {reason}") from None
    attach(model, cls, options, description["layers"])
    _load_strictly(model, weights, folder)
    return model


def _load_strictly(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    own = model.state_dict()
    added = {name for name in own if ".mechanism." in name}
    wrong = [n for n, t in weights.items() if n not in own or own[n].shape != t.shape]
    if missing := sorted(added - weights.keys()) or wrong:
        raise UserError(f"{folder}/weights.safetensors does not fit the model at {missing[0]}: distil it again")
    model.load_state_dict(weights, strict=False)
