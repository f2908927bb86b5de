"""What a training run writes down: a row per log point, a row per phase, the time; kept across resumptions."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from attnopt.mechanisms.base import Mechanism
from attnopt.records.distill import CoefficientRow, HistoryRow, PhaseRow
from attnopt.training.params import PhaseName


@dataclass
class TrainingLog:
    """The rows of a run and its clocks. The clocks run from construction, or from `go_on`, and can be read any time.

    Attributes:
        history, coefficients: the rows of history.csv and coefficients.csv.
        phases: a row per phase that has ended.
        kl_unfitted, kl_start: validation KL before anything and after the fit, nats per token.
        flops: floating-point operations of one step of all processes, by phase and tokens of a block.
        wall, cpu: seconds of the training so far, up to the last call of `pause`.
    """

    history: list[HistoryRow] = field(default_factory=list)
    coefficients: list[CoefficientRow] = field(default_factory=list)
    phases: list[PhaseRow] = field(default_factory=list)
    kl_unfitted: float = float("nan")
    kl_start: float = float("nan")
    flops: dict[tuple[PhaseName, int], int] = field(default_factory=dict)
    wall: float = 0.0
    cpu: float = 0.0

    def __post_init__(self) -> None:
        self.go_on()

    @property
    def steps(self) -> int:
        """Of the phases that have ended."""
        return sum(row.steps for row in self.phases)

    @property
    def tokens(self) -> int:
        """Predicted in the phases that have ended."""
        return sum(row.tokens for row in self.phases)

    @property
    def kl_end(self) -> float:
        """Validation KL when the last phase ended; at the start where there was none."""
        return self.phases[-1].kl_end if self.phases else self.kl_start

    def go_on(self) -> None:
        """Start the clocks where they stood."""
        self._since = (time.perf_counter() - self.wall, time.process_time() - self.cpu)

    def pause(self) -> tuple[float, float]:
        """Read the clocks: seconds of wall and of CPU time."""
        self.wall, self.cpu = time.perf_counter() - self._since[0], time.process_time() - self._since[1]
        return self.wall, self.cpu

    def state(self) -> dict[str, Any]:
        """All of it as plain dicts, lists and numbers, for a checkpoint."""
        self.pause()
        return {
            "history": [row.model_dump() for row in self.history],
            "coefficients": [row.model_dump() for row in self.coefficients],
            "phases": [row.model_dump() for row in self.phases],
            "kl_unfitted": self.kl_unfitted,
            "kl_start": self.kl_start,
            "flops": self.flops,
            "wall": self.wall,
            "cpu": self.cpu,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "TrainingLog":
        """A log that goes on where the one stood that `state` came from, its clocks too."""
        rows = {
            "history": [HistoryRow(**row) for row in state["history"]],
            "coefficients": [CoefficientRow(**row) for row in state["coefficients"]],
            "phases": [PhaseRow(**row) for row in state["phases"]],
        }
        return cls(**(state | rows))


def coefficient_rows(mechanisms: list[Mechanism], step: int) -> Iterator[CoefficientRow]:
    """What coefficients.csv says of the mechanisms after a step."""
    for mechanism in mechanisms:
        layer = mechanism.geometry.layer
        for name, values in mechanism.coefficients().items():
            for head, value in enumerate(values.detach().flatten().tolist()):
                yield CoefficientRow(step=step, layer=layer, head=head, name=name, value=round(value, 6))
