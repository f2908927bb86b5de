"""Files: outputs written aside and renamed, digests, and the environment that a record names."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attnopt.core.errors import UserError


@contextlib.contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """A temporary neighbour of `path` (file or folder) to write to; renamed to `path` on success, removed otherwise."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield aside
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(aside, path)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        aside.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    with written_aside(path) as aside:
        aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Raises UserError that names the file where it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro` (or the stage that writes it) first") from None
    except ValueError as error:  # no UTF-8, no JSON, or a number of thousands of digits
        raise UserError(f"{path} is damaged ({error}): delete it and run the stage again") from None
    except RecursionError:
        raise UserError(f"{path} is damaged (nested too deeply): delete it and run the stage again") from None


def sha256(*parts: str | bytes | Path) -> str:
    """Digest of strings, bytes and files' contents, in order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
        else:
            digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()
