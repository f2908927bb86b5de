"""Outputs that still hold are kept: each record carries a digest of all that it is a function of.

DVC says when a stage is to look; the key says whether there is anything to do.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from attnopt.core.errors import UserError
from attnopt.core.files import read_json, sha256


def key_of(*parts: object) -> str:
    """Digest of the parts' `repr`, in order; of a Path, of the file's content or of all files below the folder."""
    found: list[str | Path] = []
    for part in parts:
        if isinstance(part, Path) and part.is_dir():
            files = sorted(path for path in part.rglob("*") if path.is_file())
            found += [piece for file in files for piece in (file.relative_to(part).as_posix(), file)]
        else:
            found.append(part if isinstance(part, Path) else repr(part))
    return sha256(*found)


def holds(record: Path, key: str) -> bool:
    """Whether a record's file is there and carries this key; one that is damaged does not hold."""
    try:
        content = read_json(record)
    except UserError:
        return False
    return isinstance(content, dict) and content.get("key") == key


def remove_others(folder: Path, keep: Iterable[Path]) -> None:
    """Remove what lies in a folder besides `keep`, which are files or folders anywhere below it, and what is then
    empty."""
    kept = set(keep)
    around = {parent for path in kept for parent in path.parents}
    for path in sorted(folder.glob("*")):
        if path in kept:
            continue
        if path in around:
            remove_others(path, kept)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
