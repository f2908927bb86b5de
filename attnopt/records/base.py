"""What every record shares: it is typed and versioned, and what does not fit is named by file and key."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from attnopt.core.errors import UserError
from attnopt.core.files import read_json, write_json

Control = Literal["leaks"]


class Row(BaseModel):
    """A part of a record: frozen, unknown keys refused, and every key must be there when it is read: a default serves
    those who write, and would be an empty cell to those who read."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(Row):
    """One JSON file of a stage.

    A subclass sets `stage`, the subcommand that writes it, and counts `format` up when a key changes its meaning.

        record = EvaluateRecord.read(Path("results/evaluate/performer/0/record.json"))
        record.splits["test"].kl_forward

    Attributes:
        format: version of the record's layout.
    """

    stage: ClassVar[str]
    format: int

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Raises UserError, one line that names the file and the key, where the file is missing, damaged or of another
        layout."""
        content = read_json(path)
        known = cls.model_fields["format"].default
        if not isinstance(content, dict) or content.get("format") != known:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise UserError(f"{path}: its format is {found!r}, this version reads {known}: {cls._again()}")
        try:
            record = cls.model_validate(content)
        except ValidationError as error:
            raise UserError(f"{path}: {first_misfit(error)}: {cls._again()}") from None
        for key in _absent(record):
            raise UserError(f"{path}: '{key}' is missing: {cls._again()}")
        return record

    def write(self, path: str | Path) -> None:
        """To a neighbour that is renamed."""
        write_json(path, self.model_dump())

    @classmethod
    def _again(cls) -> str:
        return f"run `dvc repro {cls.stage}` again"


class Environment(Row):
    """What a number was measured on; None for what was not there or not loaded."""

    cpu: str
    cores: int | None
    ram_gib: float
    os: str
    python: str
    attnopt: str | None = None
    torch: str | None = None
    transformers: str | None = None
    threads: int | None = None
    device: str | None = None


class StudentRecord(Record):
    """A record about one student.

    Attributes:
        control: "leaks" for a mechanism that sees the future, which never enters a ranking.
        key: digest of all that the record is a function of; while it holds, the stage has nothing to do.
    """

    variant: str
    kind: str
    control: Control | None
    seed: int
    key: str
    environment: Environment


def first_misfit(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, with its key: "'splits.test.jsd' is missing"."""
    first: Any = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"'{key}' is missing"
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'"
    return f"'{key}' is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _absent(content: Any, prefix: str = "") -> Iterator[str]:
    """The keys that a record's file did not have, with their place: measurements.0.median."""
    if isinstance(content, BaseModel):
        for key in type(content).model_fields:
            if key in content.model_fields_set:
                yield from _absent(getattr(content, key), f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}"
    elif isinstance(content, dict | list):
        for place, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _absent(value, f"{prefix}{place}.")
