"""Numbers and lists as text: one place decides how a figure of the report reads."""

import math
from collections.abc import Iterable

from attnopt.statistics import Estimate

MISSING, NBSP = "–", "\u00a0"


def missing(x: object) -> bool:
    return x is None or (isinstance(x, float) and not math.isfinite(x))


def number(x: float | None, digits: int = 3) -> str:
    """Significant digits, thousands apart: 0.0412, 3.1, 204 800; a dash where there is none."""
    if x is None or missing(x):
        return MISSING
    if x == 0:
        return "0"
    if abs(x) < 1e-3:
        return _minus(f"{x:.{digits - 1}e}".replace("e-0", "e-"))
    if abs(x) >= 10**digits:
        return count(x)
    return _minus(f"{x:.{max(digits - 1 - math.floor(math.log10(abs(x))), 0)}f}")


def fixed(x: float, decimals: int = 2) -> str:
    return _minus(f"{x + 0.0 if abs(x) >= 0.5 * 10**-decimals else 0.0:.{decimals}f}")


def count(x: float | None) -> str:
    """Whole, thousands apart."""
    return MISSING if x is None or missing(x) else _minus(f"{x:,.0f}".replace(",", "\u202f"))


def millions(x: float | None) -> str:
    """A number of parameters: 4.42M, 590k."""
    if x is None or missing(x) or abs(x) < 10_000:
        return count(x)
    return f"{number(x / 1e6)}M" if abs(x) >= 1e6 else f"{number(x / 1e3)}k"


def flops(x: float | None) -> str:
    """Floating-point operations: 3.1e12; a dash where they were not counted."""
    return MISSING if x is None or missing(x) else "0" if x == 0 else f"{x:.1e}".replace("e+", "e")


def _minus(text: str) -> str:
    return text.replace("-", "\u2212") if text.startswith("-") else text


def plus_minus(x: float | None, error: float | None) -> str:
    """A value with its standard error, both to the error's second digit."""
    if x is None or error is None or missing(x) or missing(error) or error <= 0:
        return number(x)
    if error < 1e-4:
        return f"{number(x)}{NBSP}±{NBSP}{number(error, 2)}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{fixed(x, decimals)}{NBSP}±{NBSP}{error:.{decimals}f}"


def estimate(known: Estimate) -> str:
    """An estimate with its standard error, as `plus_minus`."""
    return plus_minus(known.value, known.error)


def interval(low: float | str, high: float | str) -> str:
    """[low, high], on one line."""
    low, high = (bound if isinstance(bound, str) else number(bound) for bound in (low, high))
    return f"[{low},{NBSP}{high}]"


def percent(x: float | None) -> str:
    return MISSING if x is None or missing(x) else f"{fixed(100 * x, 1)}{NBSP}%"


def times(x: float | None) -> str:
    if x is None or missing(x):
        return MISSING
    return f"{x:.5f}×" if 0 < x < 1e-3 else f"{number(x, 3 if x >= 1 else 2)}×"


def fraction(x: float) -> str:
    """A share as a fraction where it is one: 1/8, or else 0.30."""
    parts = round(1 / x) if x > 0 else 0
    return f"1/{parts}" if parts > 1 and abs(parts * x - 1) < 1e-6 else number(x, 2)


def size(count: float | None) -> str:
    """Bytes in binary units."""
    if count is None or missing(count):
        return MISSING
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{number(count)} {unit}"
        count /= 1024
    return f"{number(count)} GiB"


def length(tokens: float) -> str:
    """A context length: 512, 4096, 16k."""
    whole = round(tokens)
    return f"{whole // 1024}k" if whole >= 10_000 and whole % 1024 == 0 else str(whole)


def duration(seconds: float | None) -> str:
    if seconds is None or missing(seconds):
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{number(seconds, 2)} s"


def listing(names: Iterable[object]) -> str:
    """a, b and c"""
    *head, last = [str(n) for n in names] or ["none"]
    return f"{', '.join(head)} and {last}" if head else last


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
