"""attnopt: which efficient attention could replace softmax in a pretrained transformer, and what it would cost."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnopt.student.attach import attach, detach
    from attnopt.student.swap import Swap

__all__ = ["Swap", "attach", "detach", "load"]

_HOMES = {"Swap": "attnopt.student.swap", "attach": "attnopt.student.attach", "detach": "attnopt.student.attach"}
"""Imported when first asked for: torch and transformers take seconds."""


def load(path: str | Path, device: str = "cpu") -> Any:
    """A distilled student as a working Hugging Face model.

        model = attnopt.load("models/performer/0")
        ids = model.tokenizer("The meaning of life is", return_tensors="pt").input_ids
        print(model.tokenizer.decode(model.generate(ids, max_new_tokens=40)[0]))

    Args:
        path: the student's folder, as `attnopt distill` leaves it: models/NAME/SEED.
        device: where the model goes, such as "cuda".
    Returns: the model, in eval mode and with trainable parameters; its tokenizer is `model.tokenizer`.
    Raises: UserError, one line, where the folder holds no student, a damaged one, or one of another teacher.
    """
    from attnopt.student.files import load_student

    return load_student(path, device)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'attnopt' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
