"""Running the checks over all geometries, and showing what came out."""

import importlib
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from attnopt import mechanisms
from attnopt.conformance import checks
from attnopt.conformance.case import GEOMETRIES, LENGTHS, Case, Finding, Findings, NotApplicable
from attnopt.conformance.ownership import ownership
from attnopt.core.errors import UserError
from attnopt.mechanisms import Mechanism

CHECKS: dict[str, Callable[[Case], Findings]] = {
    "causality": checks.causality,
    "prefix": checks.prefix,
    "streaming": checks.streaming,
    "ownership": ownership,
    "padding": checks.padding,
    "limit": checks.limit,
    "ones": checks.ones,
    "reference": checks.reference,
    "numerics": checks.numerics,
    "determinism": checks.determinism,
    "grouped": checks.grouped,
    "memory": checks.memory,
    "parameters": checks.parameters,
}
"""Name -> check, in the order in which they are worth reading."""


@dataclass(frozen=True)
class Result:
    """The outcome of one check over all geometries.

    Attributes:
        passed: None where the check does not apply.
        worst: the largest deviation that failed, else the largest there was.
        detail: where that was, what failed first, or why the check does not apply.
    """

    name: str
    passed: bool | None
    worst: float
    detail: str


def check(cls: type[Mechanism], options: Any = None, only: Iterable[str] | None = None) -> list[Result]:
    """Run the checks (`only` those named) of a mechanism class with these options (its defaults).

    Raises: UserError for a check that does not exist.
    """
    wanted = list(CHECKS) if only is None else list(only)
    for name in wanted:
        if name not in CHECKS:
            raise UserError(f"unknown check '{name}'; known: {', '.join(CHECKS)}")
    options = cls.Options() if options is None else options
    return [_run(name, cls, options) for name in wanted]


def _run(name: str, cls: type[Mechanism], options: Any) -> Result:
    if cls.control == "leaks" and name in ("prefix", "streaming", "ownership"):
        return Result(name, None, 0.0, "it is declared to leak")
    findings = []
    for label, geometry in GEOMETRIES.items():
        try:
            for finding in CHECKS[name](Case(cls, options, geometry)):
                findings.append(finding._replace(where=f"{label}, {finding.where}"))
        except NotApplicable as reason:
            return Result(name, None, 0.0, str(reason))
        except Exception as error:  # a mechanism of the user's may fail in any way
            frame = traceback.extract_tb(error.__traceback__)[-1]
            message = f"{label}: {type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
            return Result(name, False, float("inf"), " ".join(message.split()))
    return _judge(name, findings, leaks=cls.control == "leaks" and name == "causality")


def _judge(name: str, findings: list[Finding], leaks: bool) -> Result:
    failed = [f for f in findings if not f.passed]
    worst = max(failed or findings, key=lambda f: f.deviation)
    if leaks:
        detail = "leaks as declared: " if failed else "declared to leak, but does not: "
        return Result(name, bool(failed), worst.deviation, detail + worst.where)
    if not failed:
        return Result(name, True, worst.deviation, worst.where if worst.deviation else "")
    first = f"{failed[0].where}: {failed[0].deviation:.2g}, allowed {failed[0].allowed:.2g}"
    return Result(name, False, worst.deviation, f"{len(failed)} of {len(findings)} fail, first: {first}")


def resolve(target: str) -> type[Mechanism]:
    """The class named by a registered kind or by "module:Class", where modules of the working directory are found.

    Raises: UserError where there is none.
    """
    if ":" in target:
        return _imported(target)
    try:
        return mechanisms.load_mechanism(target)
    except ValueError as error:
        raise UserError(str(error)) from None


def _imported(target: str) -> type[Mechanism]:
    module_name, _, class_name = target.partition(":")
    sys.path.insert(0, "")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # the module is the user's, and may fail in any way
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"cannot import '{target}' as module:Class: {what}") from error
    finally:
        sys.path.remove("")
    if not (isinstance(cls, type) and issubclass(cls, Mechanism)):
        raise UserError(f"'{target}' is not a subclass of attnopt.mechanisms.Mechanism")
    if not hasattr(cls, "kind"):
        cls.kind = class_name
    return cls


def conform_table(results: list[Result]) -> str:
    """One line per check: its verdict, its worst deviation, and where or why."""
    verdicts = {True: "pass", False: "FAIL", None: "-"}
    rows = [(r.name, verdicts[r.passed], "" if r.passed is None else f"{r.worst:.1e}", r.detail) for r in results]
    lines = [f"{name:<12} {verdict:<5} {worst:>8}  {detail}".rstrip() for name, verdict, worst, detail in rows]
    return "\n".join([f"{'check':<12} {'':<5} {'worst':>8}", *lines])


def check_target(target: str) -> bool:
    """Print the table of a mechanism, given as a kind or module:Class, for each of its option sets.

    Returns: whether every check that applies passed. Raises: UserError where there is no such mechanism.
    """
    cls, passed = resolve(target), True
    print(f"{target}: {', '.join(GEOMETRIES)}; {', '.join(map(str, LENGTHS))} tokens; worst deviation of each check")
    for name, options in cls.conformance_options().items():
        results = check(cls, options)
        print(f"\n{name}: {options!r}\n{conform_table(results)}")
        passed &= all(r.passed is not False for r in results)
    return passed
