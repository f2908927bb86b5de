"""The registry: every public module of this package but `base` is a mechanism, imported when it is asked for.

A folder, such as `shared`, holds parts of mechanisms and is none.
"""

import difflib
import importlib
import pkgutil

from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, MechanismOptions

__all__ = ["Geometry", "Inputs", "Mechanism", "MechanismOptions", "load_mechanism", "mechanism_names"]


def mechanism_names() -> list[str]:
    """The kinds that exist, sorted: the names of this package's public modules but `base`."""
    modules = (m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg)
    return sorted(name for name in modules if name != "base" and not name.startswith("_"))


def load_mechanism(kind: str) -> type[Mechanism]:
    """The mechanism class of a kind, with its `kind` filled in.

    Raises:
        ValueError: where there is no such kind, with the known ones and the nearest of them; and where the kind's
            module does not define exactly one mechanism.
    """
    if kind not in mechanism_names():
        near = difflib.get_close_matches(kind, mechanism_names(), 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"unknown mechanism '{kind}'{hint}; known: {', '.join(mechanism_names())}")
    module = importlib.import_module(f"{__name__}.{kind}")
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Mechanism)]
    own = [c for c in classes if c.__module__ == module.__name__]
    if len(own) != 1:
        raise ValueError(f"attnopt/mechanisms/{kind}.py must define one Mechanism, it defines {len(own)}")
    own[0].kind = kind
    return own[0]
