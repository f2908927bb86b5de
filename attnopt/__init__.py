"""attnopt: which efficient attention could replace softmax in a pretrained transformer, and what it would cost."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnopt.student.attach import attach, detach
    from attnopt.student.swap import Swap

__all__ = ["Swap", "attach", "detach", "load", "save"]

_HOMES = {"Swap": "attnopt.student.swap", "attach": "attnopt.student.attach", "detach": "attnopt.student.attach"}
"""Imported when first asked for: torch and transformers take seconds."""


def load(path: str | Path, device: str = "cpu") -> Any:
    """A distilled student as a working Hugging Face model.

        model = attnopt.load("models/performer/0")
        ids = model.tokenizer("The meaning of life is", return_tensors="pt").input_ids
        print(model.tokenizer.decode(model.generate(ids, max_new_tokens=40)[0]))

    Args:
        path: the student's folder, as `attnopt distill` leaves it (models/NAME/SEED), or an exported one. No code that
            lies there is run.
        device: where the model goes, such as "cuda".
    Returns: the model, in eval mode and with trainable parameters; its tokenizer is `model.tokenizer`.
    Raises: UserError, one line, where the folder holds no student, a damaged one, or one of another teacher.
    """
    from attnopt.export.load import load_anywhere

    return load_anywhere(Path(path), device)


def save(student: Any, folder: str | Path, *options: Any, **named: Any) -> None:
    """Write a student as a plain Hugging Face folder, which is what its own `save_pretrained` does.

        attnopt.load("models/performer/0").save_pretrained("my_student")
        AutoModelForCausalLM.from_pretrained("my_student", trust_remote_code=True)

    Args:
        student: a swapped model, loaded by `load` or made by `attach`.
        folder: is made; of one that is there, files with other names stay.
        *options: as transformers' `save_pretrained` has them.
        **named: likewise, such as max_shard_size.
    Raises: UserError, one line, where the model is not swapped or cannot be exported.
    """
    from attnopt.export.folder import save as save_folder

    save_folder(student, folder, *options, **named)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'attnopt' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
