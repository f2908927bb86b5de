"""The phases of training, each with a section of params.yaml; together they take a student to its teacher."""

from attnopt.training.params import PhaseName
from attnopt.training.phases.align import Align
from attnopt.training.phases.base import Objective, Part
from attnopt.training.phases.distill import Distill
from attnopt.training.phases.lora import Lora
from attnopt.training.phases.transfer import Transfer

PHASES: dict[PhaseName, type[Objective]] = {
    "transfer": Transfer,
    "align": Align,
    "distill": Distill,
    "lora": Lora,
}
"""In the order in which they run."""

__all__ = ["PHASES", "Objective", "Part"]
