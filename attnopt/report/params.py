"""The section `report` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field

from attnopt.core.section import Positive, Section


class ReportParams(Section):
    """The `report` section of params.yaml."""

    title: Annotated[str, Field(min_length=1)] = "What can replace softmax attention?"
    """The page's heading."""
    split: Literal["test", "valid"] = "test"
    """The split that quality is read from."""
    lengths: list[Positive] = Field(default=[])
    """Context lengths, in tokens, to choose a variant for; empty: those of `evaluate.lengths`.

    A variant is recommended for a length only where quality was measured within a factor of two of it. Costs at up to
    8 times the longest length benched are extrapolated, and called that."""
    memory_gib: Annotated[float, Field(gt=0)] = 16.0
    """The memory, in GiB, for which the page says how many sequences decode side by side in it."""
    resamples: Annotated[int, Field(ge=100)] = 2000
    """Bootstrap resamples behind every interval."""
