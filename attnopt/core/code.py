"""Which of the project's own files a module runs: what a digest of its code is made of."""

import ast
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from attnopt.core.errors import UserError
from attnopt.core.files import sha256

ROOT = Path(__file__).parents[2]
"""The folder that holds the packages."""
PACKAGES = ("attnopt", "stages")
MECHANISMS = "attnopt.mechanisms"
OWN = "ATTNOPT_MECHANISMS"
"""The environment's variable that names a folder of the user's own mechanisms."""


def own_mechanisms() -> Path | None:
    """The folder of the user's own mechanisms, which are found as if they lay in attnopt.mechanisms; or None."""
    named = os.environ.get(OWN)
    return Path(named) if named and Path(named).is_dir() else None


def use_own_mechanisms(folder: Path) -> None:
    """Where the folder is a study's, let this process and those that it starts find the mechanisms in it.

    For the command line alone: a library that looked around in the working directory would run what lies beside a
    downloaded student.
    """
    if OWN not in os.environ and all((folder / name).exists() for name in ("params.yaml", "dvc.yaml", "mechanisms")):
        os.environ[OWN] = str((folder / "mechanisms").resolve())


def code_digest(*modules: str) -> str:
    """Digest of the modules' source and of all that they import of this project, directly or not.

    What is imported by a name made at run time, as a mechanism is, is to be named too.

        code_digest("stages.distill", "attnopt.mechanisms.nsa")
    """
    files = import_closure(_file_of(module) for module in modules)
    return sha256(*(part for name, file in sorted((_name(file), file) for file in files) for part in (name, file)))


def import_closure(files: Iterable[Path]) -> set[Path]:
    """These files and the project's own that they import, directly or not, inside functions too."""
    seen: set[Path] = set()
    waiting = list(files)
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting += imports_of(file)
    return seen


@cache
def imports_of(file: Path) -> frozenset[Path]:
    """The project's own files that a file imports, anywhere in it."""
    return frozenset(path for name in _imported_names(file) for path in _paths_of(name))


def _imported_names(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:  # ValueError: no text in UTF-8, or a null byte
        raise UserError(f"{file} is no Python that can be read: {error}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            around = _module(file).split(".")[: -node.level] if node.level else []
            package = ".".join([*around, *([node.module] if node.module else [])])
            yield package
            yield from (f"{package}.{alias.name}" for alias in node.names)


def _paths_of(name: str) -> Iterator[Path]:
    """The module or package of a dotted name, with the packages around it; nothing for another project's.

    The outermost package is left out: it is the library's entry, whose functions import when they are called.
    """
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return
    for depth in range(2, len(parts) + 1):
        for folder in _places(parts[:depth]):
            yield from (p for p in (folder.with_suffix(".py"), folder / "__init__.py") if p.is_file())


def _places(parts: list[str]) -> Iterator[Path]:
    """Where a module may lie, without its suffix: in the project, then among the user's own mechanisms."""
    yield ROOT.joinpath(*parts)
    own = own_mechanisms()
    if own and len(parts) > 2 and ".".join(parts[:2]) == MECHANISMS:
        yield own.joinpath(*parts[2:])


def _file_of(module: str) -> Path:
    for place in _places(module.split(".")):
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if file.is_file():
            return file
    raise UserError(f"{module} is no module of attnopt, nor one of your own")


def _name(file: Path) -> str:
    """The same wherever the project, or the study, lies."""
    own = own_mechanisms()
    if own and file.is_relative_to(own):
        return f"attnopt/mechanisms/{file.relative_to(own).as_posix()}"
    return file.relative_to(ROOT).as_posix()


def _module(file: Path) -> str:
    """Its dotted name, with `__init__` where it is one: its package is then what comes before the last dot, too."""
    return _name(file).removesuffix(".py").replace("/", ".")
