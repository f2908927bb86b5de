"""A phase of training while it runs, and the state of a run that a checkpoint keeps: with it, it resumes to the bit."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from attnopt.core.checkpoint import Checkpoint, checkpoint_root
from attnopt.core.distributed import Alone, load_whole, part_like, whole
from attnopt.core.errors import UserError
from attnopt.student.build import Trainable
from attnopt.student.files import changed_weights
from attnopt.training.log import TrainingLog
from attnopt.training.params import PhaseName, PhaseParams
from attnopt.training.phases import Objective

Weights = dict[str, Tensor]


@dataclass
class Phase:
    """A phase while it runs.

    Attributes:
        module: the objective, wrapped where several processes share the work.
        steps: how many it is to have. before: those of the phases before it. step: its own so far.
        long: how many of its last steps take longer blocks.
        best: the lowest validation KL so far and the parameters then, where patience asks for them.
        since: looks at the validation KL since then.
    """

    objective: Objective
    module: nn.Module
    trainable: Trainable
    optimizer: torch.optim.Optimizer
    steps: int
    before: int
    step: int = 0
    best: tuple[float, Weights] | None = None
    since: int = 0
    long: int = 0

    @property
    def steps_by_length(self) -> tuple[int, int]:
        """Its steps so far on blocks of the usual length, and on longer ones."""
        short = min(self.step, self.steps - self.long)
        return short, self.step - short

    @property
    def name(self) -> PhaseName:
        return self.objective.name

    @property
    def params(self) -> PhaseParams:
        return self.objective.params

    @property
    def total_step(self) -> int:
        """Steps so far over all phases."""
        return self.before + self.step

    @property
    def is_over(self) -> bool:
        return self.step == self.steps

    def keep_best(self, valid_kl: float) -> None:
        """Take note of a look at the validation KL; a new best keeps its parameters."""
        self.since += 1
        if self.best is None or valid_kl < self.best[0]:
            kept = {name: t.detach().clone() for name, t in self.trainable.named().items()}
            self.best, self.since = (valid_kl, kept), 0

    @torch.no_grad()
    def restore_best(self) -> None:
        """Put the best parameters back, where they were kept."""
        if self.best is not None:
            for name, parameter in self.trainable.named().items():
                parameter.copy_(self.best[1][name])


@dataclass(frozen=True)
class RunState:
    """What a stopped run needs to go on.

    Attributes:
        phase: the one that runs. before, step, best, since: of that phase, see `Phase`.
        kept: changed weights of the students kept on the way, by step. transferred: of the library's, see `Trainer`.
        student: changed weights of the student. optimizer: its state_dict. log: `TrainingLog.state`.
    """

    phase: PhaseName
    before: int
    step: int
    best: tuple[float, Weights] | None
    since: int
    kept: dict[int, Weights]
    transferred: Weights | None
    student: Weights
    optimizer: dict[str, Any]
    log: dict[str, Any]


def state_of(
    phase: Phase,
    teacher: nn.Module,
    kept: dict[int, Weights],
    transferred: Weights | None,
    log: TrainingLog,
    main: bool = True,
) -> RunState:
    """The state of a run in the midst of a phase, whole. Of sharded models all processes call it together, and all but
    the main one get a state without tensors."""

    def gathered(tensor: Tensor) -> Tensor:
        found = whole(tensor)
        return found if found is tensor else found.cpu() if main else found.new_empty(0)

    best = phase.best and (phase.best[0], {name: gathered(t) for name, t in phase.best[1].items()})
    return RunState(
        phase=phase.name,
        before=phase.before,
        step=phase.step,
        best=best,
        since=phase.since,
        kept=kept,
        transferred=transferred,
        student=changed_weights(phase.objective.student, teacher, main),
        optimizer=tree_map_only(Tensor, gathered, phase.optimizer.state_dict()),
        log=log.state(),
    )


def restore_phase(phase: Phase, state: RunState) -> None:
    """Bring a phase that has just begun, its student and its optimizer to where the state was taken."""
    named = phase.trainable.named()
    load_whole(phase.objective.student, state.student)
    parameters = [p for group in phase.optimizer.param_groups for p in group["params"]]
    moments = {
        i: {name: part_like(t, parameters[i]) if t.shape == parameters[i].shape else t for name, t in of.items()}
        for i, of in state.optimizer["state"].items()
    }
    phase.optimizer.load_state_dict(state.optimizer | {"state": moments})
    phase.best = state.best and (state.best[0], {n: part_like(t, named[n]) for n, t in state.best[1].items()})
    phase.step, phase.since = state.step, state.since


def save_run(checkpoint: Checkpoint, state: RunState) -> None:
    """Replace what the checkpoint holds."""
    checkpoint.save(vars(state))


def load_run(checkpoint: Checkpoint | None) -> RunState | None:
    """What the checkpoint holds; None where it holds nothing."""
    state = checkpoint.load() if checkpoint else None
    return None if state is None else RunState(**state)


def load_shared_run(checkpoint: Checkpoint | None, group: Alone) -> RunState | None:
    """The same in several processes. Raises UserError where they do not all find the same."""
    state = load_run(checkpoint)
    if not group.agree(state.before + state.step if state else 0):
        raise UserError(
            f"{checkpoint_root()}: not all processes find the same checkpoint there; it must be one folder for all "
            "machines, which ATTNOPT_CHECKPOINTS may name"
        )
    return state
