"""Which stage a conversion is at, and how long all that are left will take."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Clock:
    """Guesses from the seconds of one forward pass, then from what the stages that were run took.

    Args:
        forwards: about what each stage costs, in forward passes over the length, in the order they are run.
        seconds: of one.
    """

    def __init__(self, forwards: Mapping[str, float], seconds: float):
        self.left, self.count = dict(forwards), len(forwards)
        self.seconds, self.took, self.expected = seconds, 0.0, 0.0

    @property
    def seconds_left(self) -> float:
        """Of all stages that are not done."""
        ratio = self.took / self.expected if self.expected else 1.0
        return sum(self.left.values()) * self.seconds * ratio

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """A stage; one that is over at once, as what it makes holds already, says nothing of the others."""
        place = self.count - len(self.left) + 1
        minutes = max(1, round(self.seconds_left / 60))
        print(f"convert {place}/{self.count}: {stage} (about {minutes} min left in all)", file=sys.stderr)
        began = time.perf_counter()
        yield
        took, expected = time.perf_counter() - began, self.left.pop(stage) * self.seconds
        if took > 0.1 * expected:
            self.took, self.expected = self.took + took, self.expected + expected
