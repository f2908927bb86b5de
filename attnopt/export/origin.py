"""Where a loaded student came from, and what its model card may therefore say.

Numbers belong to weights: they are stated only where the weights are those that were loaded.
"""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from attnopt.core.errors import UserError
from attnopt.export.card import Facts, Numbers, model_card, read_numbers
from attnopt.export.description import Description
from attnopt.mechanisms.base import Mechanism
from attnopt.mechanisms.shared.sizing import softmax_bytes
from attnopt.student.attach import mechanisms_of
from attnopt.student.files import CARD, read_card
from attnopt.teacher.model import teacher_fingerprint


@dataclass(frozen=True)
class Origin:
    """A student's or an exported folder, and the digest of the weights as they were loaded."""

    folder: Path
    digest: str


def note_origin(model: Any, folder: Path) -> Any:
    """The model, with where it came from as `attnopt_origin`."""
    model.attnopt_origin = Origin(Path(folder), teacher_fingerprint(model))
    return model


def tokenizer_in(folder: Path, config: Any) -> Any:
    """The tokenizer of an exported folder; None where there is none.

    Raises: UserError, one line, where it is damaged.
    """
    if not (folder / "tokenizer_config.json").is_file():  # transformers would make an empty one
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # tokenizers raises bare ones
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"{folder}: its tokenizer cannot be loaded: {reason}") from None


def tokenizer_of(model: Any) -> Any:
    """The tokenizer that a student carries, else that of the folder which it was loaded from; None where it has none.

    One that transformers loaded carries none.
    """
    origin: Origin | None = getattr(model, "attnopt_origin", None)
    if (own := getattr(model, "tokenizer", None)) is not None or origin is None:
        return own
    return tokenizer_in(origin.folder, model.config)


def card_text(model: Any, description: Description, state_dict: dict[str, Tensor] | None) -> str:
    """The model card of a student that is about to be saved, with these weights or its own.

    One that was loaded and not changed keeps its numbers: those of the study's records, or the card that it had.
    """
    origin: Origin | None = getattr(model, "attnopt_origin", None)
    if origin is None:
        return model_card(description, Numbers(), _facts(model))
    if _digest(model, state_dict) != origin.digest:
        return model_card(description, Numbers(trained_on_from=origin.folder.name), _facts(model))
    if (origin.folder / CARD).is_file():
        return model_card(description, read_numbers(origin.folder, read_card(origin.folder)), _facts(model))
    earlier = origin.folder / "README.md"
    return (
        earlier.read_text(encoding="utf-8")
        if earlier.is_file() and not earlier.is_symlink()  # which could point at a file that is nobody else's business
        else model_card(description, Numbers(), _facts(model))
    )


def _digest(model: Any, state_dict: dict[str, Tensor] | None) -> str:
    if state_dict is None:
        return teacher_fingerprint(model)
    return teacher_fingerprint(cast(nn.Module, SimpleNamespace(state_dict=lambda: state_dict)))


def _facts(model: Any) -> Facts:
    mechanisms, origin = mechanisms_of(model), getattr(model, "attnopt_origin", None)
    positions = getattr(model.config, "max_position_embeddings", None) or 1024
    lengths = sorted({min(256, positions), min(1024, positions), positions})
    return Facts(
        architecture=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        state=[(n, *_state_bytes(mechanisms, n, model.dtype)) for n in lengths],
        **_teacher(origin),
    )


def _state_bytes(mechanisms: list[Mechanism], length: int, dtype: torch.dtype) -> tuple[int, int]:
    """What all layers remember of one sequence, and what softmax would."""
    own = sum(m.state_bytes(1, length, dtype) for m in mechanisms)
    return own, sum(softmax_bytes(m.geometry, length, dtype) for m in mechanisms)


def _teacher(origin: Origin | None) -> dict[str, Any]:
    """The teacher's name, without the place where it lies on this machine."""
    if origin is None or not (origin.folder / CARD).is_file():
        return {}
    teacher = read_card(origin.folder).teacher
    name = teacher.get("id") if teacher.get("source") == "hub" else Path(str(teacher.get("path") or "mini-gpt2")).name
    return {"teacher": str(name), "base": name if teacher.get("source") == "hub" else None}
