"""code.json: what a study depends on of the installed package, in place of source files.

Of every stage the digest of all that it runs, of every mechanism that of its own, and of the bundled data. A stage's
records carry keys of the same digests, so that DVC looks where they change and nowhere else.
"""

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from attnopt.core.code import ROOT, code_digest, import_closure, own_mechanisms
from attnopt.core.errors import UserError
from attnopt.core.files import sha256, write_json
from attnopt.core.keep import key_of
from attnopt.tools.shipped import ASSETS

CODE = Path("code.json")


def installed_code() -> dict[str, Any]:
    """Digests by kind of thing and name: `stages`, `mechanisms` (the user's own among them) and `assets`.

    Raises: UserError, one line, where a mechanism of the user's own cannot be read or has a name that is taken.
    """
    stages = sorted(file.stem for file in (ROOT / "stages").glob("*.py") if file.stem != "__init__")
    folders = sorted(folder for folder in ASSETS.iterdir() if folder.is_dir())
    return {
        "attnopt": metadata.version("attnopt"),
        "stages": {name.replace("_", "-"): _stage_digest(name) for name in stages},
        "mechanisms": {kind: code_digest(f"attnopt.mechanisms.{kind}") for kind in sorted(_kinds())},
        "assets": {folder.name: key_of(folder) for folder in folders if folder.name not in ("project", "study")},
    }


def write_code(path: Path = CODE) -> None:
    write_json(path, installed_code())


def _stage_digest(stage: str) -> str:
    """Of the modules, and of what else lies in their folders: the report's templates."""
    folders = {file.parent for file in import_closure([ROOT / "stages" / f"{stage}.py"])} - {ROOT / "attnopt"}
    data = sorted({file for folder in folders for file in _data_in(folder)})
    digests = (part for file in data for part in (file.relative_to(ROOT).as_posix(), file))
    return sha256(code_digest(f"stages.{stage}", "attnopt.mechanisms.softmax"), *digests)


def _data_in(folder: Path) -> Iterator[Path]:
    """What lies in a package and is neither code, nor its README, nor another package."""
    for path in folder.iterdir():
        if path.is_file():
            if path.suffix not in (".py", ".pyc", ".md"):
                yield path
        elif path.name != "__pycache__" and not (path / "__init__.py").is_file():
            yield from _data_in(path)


def _kinds() -> Iterator[str]:
    """As `attnopt.mechanisms.mechanism_names`, whose import takes torch."""
    taken = {file.stem for file in (ROOT / "attnopt" / "mechanisms").glob("*.py")}
    yield from (kind for kind in taken if kind != "base" and not kind.startswith("_"))
    own = own_mechanisms()
    for file in sorted(own.glob("*.py")) if own else ():
        if file.stem in taken and not file.stem.startswith("_"):
            raise UserError(f"{file}: '{file.stem}' is a mechanism of attnopt already; give the file another name")
        if not file.stem.startswith("_"):
            yield file.stem
