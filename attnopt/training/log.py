"""What a training run writes down: a row per log point, the stages, the time; kept across resumptions."""

import csv
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from attnopt.mechanisms.base import Mechanism

HISTORY = (
    "stage", "step", "tokens", "loss", "kl", "valid_kl", "lr", "grad_norm", "tokens_per_s", "wall_s", "cpu_s",
    "rss_mib", "gpu_allocated_mib", "gpu_reserved_mib",
)  # fmt: skip
COEFFICIENTS = ("step", "layer", "head", "name", "value")


@dataclass
class TrainingLog:
    """Attributes:
    history, coefficients: the rows of history.csv and coefficients.csv. stages: a row per stage that has ended.
    kl: validation KL before anything (`unfitted`), at the start, and of the best look. flops: of one step, by stage.
    wall, cpu: seconds of the training so far, up to the last call of `pause`.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    coefficients: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    kl: dict[str, float] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)
    wall: float = 0.0
    cpu: float = 0.0

    def __post_init__(self) -> None:
        self.go_on()

    def go_on(self) -> None:
        """Start the clocks where they stood."""
        self._since = (time.perf_counter() - self.wall, time.process_time() - self.cpu)

    def pause(self) -> tuple[float, float]:
        """Read the clocks: seconds of wall and of CPU time."""
        self.wall, self.cpu = time.perf_counter() - self._since[0], time.process_time() - self._since[1]
        return self.wall, self.cpu

    def state(self) -> dict[str, Any]:
        self.pause()
        return asdict(self)


def coefficient_rows(mechanisms: list[Mechanism], step: int) -> Iterator[dict[str, Any]]:
    """What coefficients.csv says of the mechanisms after a step."""
    for mechanism in mechanisms:
        for name, values in mechanism.coefficients().items():
            for head, value in enumerate(values.detach().flatten().tolist()):
                row = {"step": step, "layer": mechanism.geometry.layer, "head": head, "name": name}
                yield {**row, "value": round(value, 6)}


def write_csv(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Rows as CSV, with a header also where there are none; None is an empty cell."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
