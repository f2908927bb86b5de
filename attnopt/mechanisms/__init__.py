"""The registry: every public module of this package is a mechanism, found by discovery and imported when asked for."""

import difflib
import importlib
import pkgutil

from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, MechanismOptions

__all__ = ["Geometry", "Inputs", "Mechanism", "MechanismOptions", "load", "names"]


def mechanism_names() -> list[str]:
    """The kinds that exist, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base" and not m.ispkg)


def load_mechanism(kind: str) -> type[Mechanism]:
    """The mechanism class of a kind. Raises ValueError that lists the known kinds where there is none."""
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
