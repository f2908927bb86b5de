"""How large a mechanism is made for a budget of state: the options by which its state grows, and their search."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch


class Size(NamedTuple):
    """Options that grow together, with a number n = least, least + 1, ...

    Attributes:
        names: the options.
        share: of a budget, up to which they grow while the sizes after them stand at their least. The last size takes
            what is left, whatever its share: so coarse ones come first.
        at: their values at n; None: n, of a single option.
        least: the first n.
    """

    names: tuple[str, ...]
    share: float = 1.0
    at: Callable[[int], Sequence[Any]] | None = None
    least: int = 1

    def options(self, n: int) -> dict[str, Any]:
        """The options at n, by name."""
        return dict(zip(self.names, [n] if self.at is None else self.at(n), strict=True))


def softmax_bytes(geometry: Any, length: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of `length` tokens in one layer: what softmax has to remember of one sequence."""
    return 2 * geometry.kv_heads * geometry.head_dim * length * dtype.itemsize


def sized_options(cls: Any, geometry: Any, options: Any, allowed: int, length: int, dtype: torch.dtype) -> Any:
    """`Mechanism.sized` of a mechanism class: its options with the largest state of at most `allowed` bytes.

    What was set in the options stays, and where the state grows with every token, all of them. Of a mechanism without
    `sizes` it only sees whether it is within.
    """

    def with_options(chosen: Mapping[str, Any]) -> Any:
        return cls.Options(**(options.model_dump(exclude_unset=True) | dict(chosen)))

    def held(chosen: Mapping[str, Any]) -> int:
        return cls(geometry, with_options(chosen)).state_bytes(1, length, dtype)

    sizes = [size for size in cls.sizes(geometry, options) if not options.model_fields_set & set(size.names)]
    least = _at_least(sizes)
    with torch.random.fork_rng(devices=[]):
        if cls(geometry, with_options(least)).growth == "linear":
            return options
        if (smallest := held(least)) > allowed:
            what = ", ".join(f"{name} {value}" for name, value in with_options(least)) or "its state"
            raise ValueError(f"{what}: {smallest} bytes a layer at {length} tokens, and {allowed} are allowed")
        return with_options(_grown(held, sizes, allowed))


def _at_least(sizes: Sequence[Size]) -> dict[str, Any]:
    """The options of all sizes at their least."""
    return {name: value for size in sizes for name, value in size.options(size.least).items()}


def _grown(state_bytes: Callable[[Mapping[str, Any]], int], sizes: Sequence[Size], allowed: int) -> dict[str, Any]:
    """The options with which a state fills a budget: each size in turn as large as its share admits.

    Args:
        state_bytes: of a state with given options.
        sizes: those that stand at their least within the budget.
    """
    chosen = _at_least(sizes)
    for i, size in enumerate(sizes):
        room = allowed * (size.share if i + 1 < len(sizes) else 1)
        others = dict(chosen)
        chosen |= size.options(
            _largest(lambda n, o=others, s=size: state_bytes(o | s.options(n)), size.least, room)  # type: ignore[misc]
        )
    return chosen


def _largest(held: Callable[[int], int], least: int, room: float) -> int:
    """The largest n up to which each step holds more than the one before and none more than `room`; `least` at least.

    A state that no longer grows, as past the rank of a head, ends the search.
    """

    def is_more(n: int) -> bool:
        return held(n - 1) < held(n) <= room

    low = high = least
    while high == low:
        high = max(2 * low, low + 1)
        low = high if is_more(high) else low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_more(middle) else (low, middle)
    return low
