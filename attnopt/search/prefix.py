"""Mixes that begin alike: their common layers are run once, and later passes begin behind them.

Of all single layers' scores that halves the work: with layer l replaced alone, those before it are as they were.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from torch import nn

from attnopt.search.mixable import Mixable
from attnopt.search.solve import Found

T = TypeVar("T")


class Prefix(Generic[T]):
    """The passes of one function over mixes of a model.

        prefix = Prefix(mixable, probe.of)
        prefix.run((0, 0, 1, 0), keep=2)     # runs all, keeps what layers 0 and 1 gave
        prefix.run((0, 0, 2, 0), keep=2)     # begins at layer 2

    Args:
        measure: what is called with a model; the texts that it runs, and their order, are the same each time.
    """

    def __init__(self, mixable: Mixable, measure: Callable[[Any], T]):
        self.mixable, self.measure = mixable, measure
        self.begun: Found = ()
        self._kept: list[Any] = []
        self._noted: list[Any] = []
        self._start, self._keep, self._pass = 0, 0, -1
        for index, block in enumerate(blocks_of(mixable.model, mixable.places)):
            block.forward = partial(self._forward, index, block.forward)  # type: ignore[method-assign]

    def run(self, mix: Found, keep: int = 0) -> T:
        """What `measure` says of the mix.

        Args:
            keep: how many of its first layers the next mixes have in common with it.
        """
        alike = mix[: len(self.begun)] == self.begun
        self._start, self._pass, self._noted = len(self.begun) if alike else 0, -1, []
        self._keep = keep if keep > self._start else 0
        try:
            found = self.measure(self.mixable.mixed(mix))
        finally:
            self._start, ended = 0, self._keep
            self._keep = 0
        if ended:
            self.begun, self._kept = mix[:ended], self._noted
        return found

    def _forward(self, index: int, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._pass += index == 0
        if index < self._start:
            return self._kept[self._pass]
        output = own(*args, **kwargs)
        if index == self._keep - 1:
            self._noted.append(output)
        return output


def blocks_of(model: nn.Module, places: list[str]) -> list[nn.Module]:
    """The decoder's blocks that hold the attention layers at these places: each the innermost item of a list."""
    return [model.get_submodule(_block(model, place)) for place in places]


def _block(model: nn.Module, place: str) -> str:
    while not isinstance(model.get_submodule(place.rpartition(".")[0]), nn.ModuleList):
        place = place.rpartition(".")[0]
    return place
