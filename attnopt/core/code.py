"""Which of the project's own files a module runs: what a digest of its code is made of."""

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from attnopt.core.files import sha256

ROOT = Path(__file__).parents[2]
"""The folder that holds the packages."""
PACKAGES = ("attnopt", "stages")


def code_digest(*modules: str) -> str:
    """Digest of the modules' source and of all that they import of this project, directly or not.

    What is imported by a name made at run time, as a mechanism is, is to be named too.

        code_digest("stages.distill", "attnopt.mechanisms.nsa")
    """
    files = import_closure(_file_of(module) for module in modules)
    return sha256(*(part for file in sorted(files) for part in (file.relative_to(ROOT).as_posix(), file)))


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
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _paths_of(name: str) -> Iterator[Path]:
    """The module or package of a dotted name, with the packages around it; nothing for another project's.

    The outermost package is left out: it is the library's entry, whose functions import when they are called.
    """
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return
    for depth in range(2, len(parts) + 1):
        path = ROOT.joinpath(*parts[:depth])
        yield from (p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file())


def _file_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
