"""What a run is going to do: which phases it has, their steps, and after which steps a student is kept."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from attnopt.core.errors import UserError
from attnopt.training.params import PhaseName, Variant
from attnopt.training.phases import PHASES
from attnopt.training.schedule import total_steps


@dataclass(frozen=True)
class Plan:
    """Attributes:
    phases: optimizer steps by phase, in the order in which they run; none has 0.
    marks: steps, counted over all phases, after which a student is kept besides the last.
    long: how many of each phase's last steps take longer blocks.
    """

    phases: Mapping[PhaseName, int]
    marks: frozenset[int]
    long: Mapping[PhaseName, int]

    @property
    def steps(self) -> int:
        """Of all phases together."""
        return sum(self.phases.values())


def budgeted_phases(variant: Variant, blocks: int) -> dict[PhaseName, int]:
    """Steps by phase, in order, of the phases whose budget is above 0, given the number of training blocks."""
    steps = {name: total_steps(variant.phase(name), variant.distill.batch, blocks) for name in PHASES}
    return {name: count for name, count in steps.items() if count}


def make_plan(variant: Variant, blocks: int, trains: Collection[PhaseName]) -> Plan:
    """The plan of a variant's runs.

    Args:
        blocks: how many there are to train on, which `epochs` are counted in.
        trains: the phases that have something to train; the others are left out.
    Raises: UserError where a student is to be kept within lora: it is no plain model there; or where the transfer of
        one layer after the other is to have longer blocks.
    """
    phases = {name: steps for name, steps in budgeted_phases(variant, blocks).items() if name in trains}
    total, shares = sum(phases.values()), variant.distill.keep
    marks = frozenset(round(share * total) for share in shares) - {0, total}
    if marks and max(marks) > total - phases.get("lora", 0):
        raise UserError(
            f"{variant.name}: distill.keep: {max(shares)} of {total} steps lies within the "
            "phase lora, whose student is not merged yet; allowed: earlier shares"
        )
    long = _long_steps(phases, variant.distill.long_share)
    if variant.transfer.layers == "in_turn" and long.get("transfer"):
        raise UserError(
            f"{variant.name}.transfer.layers: in_turn reads blocks of the usual length, and distill.long_share gives "
            f"{long['transfer']} of its steps longer ones; allowed: a share that ends with the phases after it"
        )
    return Plan(phases, marks, long)


def _long_steps(phases: Mapping[PhaseName, int], share: float) -> dict[PhaseName, int]:
    """The last share of all steps, by phase."""
    left = round(share * sum(phases.values()))
    found: dict[PhaseName, int] = {}
    for name in reversed(list(phases)):
        found[name] = min(left, phases[name])
        left -= found[name]
    return found
