"""Load a student from wherever it lies: as the study keeps it, or exported."""

from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME

from attnopt.export.origin import note_origin, tokenizer_in
from attnopt.export.pretrained import load_exported
from attnopt.student.files import CARD, load_student


def load_anywhere(folder: Path, device: str = "cpu") -> Any:
    """The student of models/NAME/SEED or of an exported folder, with its tokenizer; None where a folder was exported
    without.

    Raises: UserError, one line that names the file, where it is damaged or incomplete, or no student is there.
    """
    if (folder / CARD).is_file() or not (folder / CONFIG_NAME).is_file():
        return note_origin(load_student(folder, device), folder)
    model = load_exported(folder)
    model.tokenizer = tokenizer_in(folder, model.config)
    return model.requires_grad_(True).to(device)
