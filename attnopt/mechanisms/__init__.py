"""The registry: every public module of this package but `base` is a mechanism, imported when it is asked for.

A folder, such as `shared`, holds parts of mechanisms and is none. A user's own, in the folder `mechanisms` of a study,
are found as if they lay here.
"""

import difflib
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from attnopt.core.code import own_mechanisms
from attnopt.core.errors import UserError
from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, MechanismOptions

__all__ = ["Geometry", "Inputs", "Mechanism", "MechanismOptions", "load_mechanism", "mechanism_names"]


def mechanism_names() -> list[str]:
    """The kinds that exist, sorted: the names of this package's public modules but `base`, and the user's own."""
    _find_own()
    modules = {m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg}
    return sorted(name for name in modules if name != "base" and not name.startswith("_"))


def load_mechanism(kind: str) -> type[Mechanism]:
    """The mechanism class of a kind, with its `kind` filled in.

    Raises:
        ValueError: where there is no such kind, with the known ones and the nearest of them; where the kind's module
            does not define exactly one mechanism; and where one of the user's own cannot be imported, or has the name
            of one from here.
    """
    if kind not in mechanism_names():
        near = difflib.get_close_matches(kind, mechanism_names(), 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"unknown mechanism '{kind}'{hint}; known: {', '.join(mechanism_names())}")
    file, *others = (file for folder in __path__ if (file := Path(folder) / f"{kind}.py").is_file())
    if others:
        raise UserError(f"{others[0]}: '{kind}' is a mechanism of attnopt already; give the file another name")
    module = _imported(kind, file)
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Mechanism)]
    own = [c for c in classes if c.__module__ == module.__name__]
    if len(own) != 1:
        raise UserError(f"{file} must define one Mechanism, it defines {len(own)}")
    own[0].kind = kind
    return own[0]


def _imported(kind: str, file: Path) -> ModuleType:
    try:
        return importlib.import_module(f"{__name__}.{kind}")
    except Exception as error:  # a user's own file may fail in any way
        if file.parent == Path(__path__[0]):
            raise
        raise UserError(f"{file}: {' '.join(f'{type(error).__name__}: {error}'.split())}") from error


def _find_own() -> None:
    folder = own_mechanisms()
    __path__[1:] = [str(folder)] if folder else []


_find_own()  # a process that was handed an object of such a class imports its module by name
