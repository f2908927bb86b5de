"""What a conversion is asked for, and the folder that it is made in."""

import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from attnopt.core.errors import UserError
from attnopt.core.files import read_json, write_json

BUNDLED, SAMPLE = "bundled", "enwiki-sample"
NOTE = "conversion.json"
"""Beside the study: what was asked for, so that only the same goes on there."""


@dataclass(frozen=True)
class Request:
    """A conversion.

    Attributes:
        model: BUNDLED, a folder, a .gguf file, an installed package that carries one, or an id on a hub.
        length: tokens after which states are compared, and on which quality is measured.
        state: the share of softmax's state at `length` that the student may hold.
        text: a folder of text, or SAMPLE; None: training is on text of the model's own, measured on SAMPLE.
        train: steps of distillation that the mix found gets.
    """

    model: str
    length: int
    state: float
    text: str | None = None
    train: int = 0

    def __post_init__(self) -> None:
        if self.length < 8:
            raise UserError(f"--length {self.length}: 8 tokens are the least")
        if not 0 < self.state < 1:
            raise UserError(f"--state {self.state:g}: a share of softmax's state is needed, above 0 and below 1")
        if self.train < 0:
            raise UserError(f"--train {self.train}: 0 steps are the least")

    @property
    def name(self) -> str:
        """The model's, as a part of a file's name."""
        return Path(self.model).stem if self.model.endswith(".gguf") else Path(self.model).name

    @property
    def default_folder(self) -> Path:
        return Path(f"{self.name}-{self.length}-{self.state:g}")

    def teacher(self) -> dict[str, Any]:
        """Where the model lies, as the section `teacher`. Raises UserError where a path holds no model."""
        path = Path(self.model)
        if self.model == BUNDLED:
            return {"source": "bundled"}
        if path.suffix == ".gguf":
            if not path.is_file():
                raise UserError(f"{path} does not exist")
            return {"source": "gguf", "path": str(path.absolute())}
        if path.is_dir():
            return _in_folder(path)
        if self.model.isidentifier() and importlib.util.find_spec(self.model):
            return {"source": "gguf", "path": self.model}
        if path.is_absolute() or path.exists() or self.model.startswith(".") or self.model.count("/") > 1:
            raise UserError(f"{self.model} is no model: {BUNDLED}, a folder, a .gguf file or a hub id is needed")
        return {"source": "hub", "id": self.model}


def _in_folder(path: Path) -> dict[str, Any]:
    """A model's folder, or one that holds a single .gguf file."""
    if (path / "config.json").is_file():
        return {"source": "path", "path": str(path.absolute())}
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return {"source": "gguf", "path": str(files[0].absolute())}
    several = f"{len(files)} .gguf files: name one" if files else "no config.json and no .gguf file"
    raise UserError(f"{path} is no model's folder: it has {several}")


def claim(folder: Path, request: Request) -> None:
    """Take a folder for a conversion; one that was begun for the same goes on.

    Raises: UserError where it holds anything else.
    """
    check_folder(folder, request)
    if not (folder / NOTE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / NOTE, asdict(request))


def check_folder(folder: Path, request: Request) -> None:
    """Raises UserError where the folder is not free for this conversion."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: {folder} is a file")
    if not folder.is_dir() or not (held := {path.name for path in folder.iterdir() if not _partial(path)}):
        return
    if NOTE not in held:
        raise UserError(f"--out: {folder} holds something else: name a new folder, or remove it first")
    begun, asked = read_json(folder / NOTE), asdict(request)
    begun = begun if isinstance(begun, dict) else {}
    if other := [f"{key} {begun.get(key)} and not {asked[key]}" for key in asked if begun.get(key) != asked[key]]:
        raise UserError(f"--out: {folder} holds another conversion, of {', '.join(other)}: name another folder")


def _partial(path: Path) -> bool:
    """What a killed run was writing."""
    return path.name.startswith(f".{NOTE}.") and path.name.endswith(".partial")
