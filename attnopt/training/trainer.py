"""The one trainer of all variants: its phases in turn, each AdamW on an objective, resumable to the bit."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attnopt.core.checkpoint import Checkpoint
from attnopt.core.device import memory_in_use, resolve_precision
from attnopt.core.distributed import Alone, whole
from attnopt.core.errors import RunError, UserError
from attnopt.core.machine import environment
from attnopt.mechanisms.base import Mechanism
from attnopt.records.base import Environment
from attnopt.records.distill import Budget, DistillRecord, HistoryRow, PhaseRow, StudentCard
from attnopt.student.attach import mechanisms_of
from attnopt.student.build import build_student, fit_mechanisms
from attnopt.student.distance import per_token
from attnopt.student.files import changed_weights
from attnopt.student.library import LibraryStudent, mixed_student
from attnopt.targets.dataset import Dataset
from attnopt.teacher.head import Head, head_of
from attnopt.teacher.model import teacher_fingerprint
from attnopt.teacher.params import TeacherParams
from attnopt.training.about import described, refuse_leaks
from attnopt.training.batches import Batches
from attnopt.training.log import TrainingLog, coefficient_rows
from attnopt.training.params import DistillParams, PhaseName, Seeds, Variant
from attnopt.training.phases import PHASES, Objective, Part
from attnopt.training.plan import Plan, budgeted_phases, make_plan
from attnopt.training.resume import Phase, RunState, load_run, load_shared_run, restore_phase, save_run, state_of
from attnopt.training.schedule import factor, make_optimizer
from attnopt.training.sharding import load_fitted, refuse_unshardable, shard_models, uncopied

Progress = Callable[[int, int, HistoryRow], None]


class Trainer:
    """Distils one variant with one seed, on the device that the dataset's teacher lies on.

        dataset, tokenizer = load_dataset(settings.teacher)
        variant = settings.variant("performer")
        trainer = Trainer(dataset, variant, variant.runs()[0])
        student = trainer.run()
        trainer.record(key="").kl_end        # nats per token on the validation split

    Construction only takes note of its arguments; `run` begins with `prepare`, which builds the student.

    Args:
        dataset: the teacher and the blocks; neither is changed, but that a group which shards does so to the teacher.
        checkpoint: where the run is kept while it goes on; None keeps nothing.
        group: the processes that share the work, on whose device the teacher is to lie; None: this one alone.
        progress: called with (step, steps of the plan, row) at every log point.
        mix: of a mixed student, which one of the library each layer is taken from.

    Attributes, once prepared:
        student: the model that learns; what no phase trains of it are the teacher's own tensors.
        plan: its phases and their steps. objectives: by phase.
        log: what was written down so far.
        kept: `changed_weights` of the student after each step that `distill.keep` asks for.
        weights: the same of the whole run's student, once it has ended.
        transferred: the same as `transfer` left it, or where it has no such phase as it began: the library's.
    """

    student: Any
    teacher_head: Head
    head: Head
    objectives: dict[PhaseName, Objective]
    plan: Plan
    weights: dict[str, Tensor]

    def __init__(
        self,
        dataset: Dataset,
        variant: Variant,
        seeds: Seeds,
        checkpoint: Checkpoint | None = None,
        group: Alone | None = None,
        progress: Progress = lambda *_: None,
        mix: Mapping[int, LibraryStudent] | None = None,
    ):
        self.dataset, self.variant, self.seeds = dataset, variant, seeds
        self.checkpoint, self.progress, self.mix = checkpoint, progress, mix
        self.params: DistillParams = variant.distill
        self.group = group or Alone(dataset.teacher.device)
        self.device = self.group.device
        self.dtype = resolve_precision(self.params.precision, self.device)
        self.blocks = dataset.blocks["train"]
        self.batches = Batches(dataset, self.params, seeds.data, self.group)
        self.kept: dict[int, dict[str, Tensor]] = {}
        self.transferred: dict[str, Tensor] | None = None
        self.log = TrainingLog()

    def prepare(self) -> None:
        """Build the student and plan its phases.

        Raises: UserError where its mechanism does not fit the model or the budget of state, or sees the future, or
            where a phase cannot train it as params.yaml asks.
        """
        teacher = self.dataset.teacher
        if self.group.shards:
            refuse_unshardable(self.variant)
        self.fingerprint = teacher_fingerprint(teacher)
        try:
            self.student = self._build()
        except UserError as error:
            raise UserError(f"{self.variant.name}: {error}") from None
        refuse_leaks(self.student)
        self.teacher_head, self.head = head_of(teacher), head_of(self.student)
        self.objectives = self._make_objectives()
        self.plan = make_plan(self.variant, len(self.blocks), self.objectives)
        if any(self.plan.long.values()):
            _ = self.batches.long  # refused before any work

    def run(self) -> Any:
        """Train to the end, from the last checkpoint where there is one; returns the student.

        Raises: UserError as `prepare`; RunError where the loss is no longer a number.
        """
        self.prepare()
        state = load_shared_run(self.checkpoint, self.group)
        whole = shard_models(self.student, self.dataset.teacher, self.group) if self.group.shards else None
        if state is None:
            self._begin(whole)
        else:
            self.log, self.kept, self.transferred = TrainingLog.from_state(state.log), state.kept, state.transferred
        names = list(self.plan.phases)
        for name in names[names.index(state.phase) if state else 0 :]:
            phase = self.start(name, self.log.steps, state)
            self._train(phase)
            self._finish(phase)
            state = None
        self.log.pause()
        self.weights = self._changed()
        return self.student

    def valid_kl(self) -> float:
        """Forward KL on the first valid blocks, in nats per token."""
        blocks = self.dataset.blocks["valid"][: self.params.valid_blocks]
        theirs = partial(self.dataset.hidden, "valid")
        tokens = per_token(self.student, self.head, theirs, self.teacher_head, blocks)
        return float(tokens["kl_forward"].mean(dtype=np.float64))

    def record(self, key: str) -> DistillRecord:
        """What the run was and cost: budget, KL before and after, parameters, floating-point operations, time.

        Args:
            key: digest of all that the student is a function of.
        """
        log = self.log
        budget = {"steps": log.steps, "tokens": log.tokens, "block": self.batches.short.length}
        if long := sum(row.long_steps for row in log.phases):
            budget |= {"long_steps": long, "long_block": self.batches.long.length}
        return DistillRecord(
            seed=self.seeds.run,
            key=key,
            environment=Environment(**environment()),
            **self._about(),
            data_seed=self.seeds.data,
            features_seed=self.seeds.features,
            budget=Budget(**(self.params.model_dump() | budget)),
            precision=str(self.dtype).removeprefix("torch."),
            processes=self.group.size,
            kl_start_unfitted=log.kl_unfitted,
            kl_start=log.kl_start,
            kl_end=log.kl_end,
            phases=log.phases,
            flops=sum(phase.flops for phase in log.phases),
            trained_parameters=max((phase.trained_parameters for phase in log.phases), default=0),
            total_parameters=sum(t.numel() for t in self.student.parameters()),
            seconds=round(log.wall, 2),
            cpu_seconds=round(log.cpu, 2),
            tokens_per_s=round(log.tokens / log.wall, 1) if log.steps else None,
        )

    def card(self, key: str, teacher: TeacherParams) -> StudentCard:
        """What turns the teacher, loaded by its section, into this student; `key` as in `record`."""
        return StudentCard(
            **self._about(),
            seed=self.seeds.run,
            teacher=teacher.model_dump(),
            fingerprint=self.fingerprint,
            key=key,
        )

    def _build(self) -> Any:
        """The student before its first step."""
        teacher, variant = self.dataset.teacher, self.variant
        if self.mix is not None:
            return mixed_student(teacher, self.mix, variant.state)
        return build_student(teacher, variant.swap, self.seeds.features, uncopied(teacher, variant, self.group))

    def _about(self) -> dict[str, Any]:
        return described(self.student, self.variant, self.mix or {})

    def start(self, name: PhaseName, before: int = 0, state: RunState | None = None) -> Phase:
        """Begin a phase of the plan after `before` steps of others, or go on with it from a checkpoint's state."""
        objective = self.objectives[name]
        trainable = objective.begin()
        optimizer = make_optimizer(trainable, objective.params, self.params.weight_decay)
        module = self.group.wrap(objective)
        steps, long = self.plan.phases[name], self.plan.long[name]
        phase = Phase(objective, module, trainable, optimizer, steps, before, long=long)
        if state is not None:
            restore_phase(phase, state)
        return phase

    def update(self, phase: Phase, parts: list[Part]) -> tuple[Tensor, Tensor | None, Tensor]:
        """One update; returns the loss, the divergence where there is one, and the gradient's norm, on the device."""
        for group in phase.optimizer.param_groups:
            group["lr"] = group["peak"] * factor(phase.step, phase.steps, phase.params.warmup)
        length = self.batches.cut(phase, phase.step).length
        counts = (phase.name, length) not in self.log.flops
        counter = FlopCounterMode(display=False)
        with counter if counts else nullcontext():
            pieces = (piece for part in parts for piece in phase.objective.pieces(part))
            last = len(parts) * phase.objective.turns - 1
            found = [self._backward(phase, piece, len(parts), i == last) for i, piece in enumerate(pieces)]
        if counts:
            self.log.flops[phase.name, length] = counter.get_total_flops() * self.group.size
        norm = whole(nn.utils.clip_grad_norm_(phase.trainable.parameters(), self.params.clip))
        phase.optimizer.step()
        phase.optimizer.zero_grad(set_to_none=True)
        losses, kls = zip(*found, strict=True)
        loss = torch.stack(losses).mean() * phase.objective.turns
        return loss, None if kls[0] is None else torch.stack(kls).mean(), norm

    def _make_objectives(self) -> dict[PhaseName, Objective]:
        """Those of the phases that have steps and something to train."""
        names = budgeted_phases(self.variant, len(self.blocks))
        made = {n: PHASES[n](self.student, self.dataset, self.variant, self.seeds, self.dtype) for n in names}
        return {name: objective for name, objective in made.items() if objective.trainable().parameters()}

    def _begin(self, whole: list[Mechanism] | None) -> None:
        """What comes before the first step: the KL, the fit (of whole copies of what is sharded), the KL again."""
        self.log.kl_unfitted = self.valid_kl()
        if self.params.fit and self.mix is None:
            rows = slice(self.params.fit_blocks)
            positions = self.dataset.positions("train", rows, self.device)
            fit_mechanisms(whole or mechanisms_of(self.student), self.dataset.teacher, self.blocks[rows], positions)
            if whole:
                load_fitted(self.student, whole)
        self.log.kl_start = self.valid_kl()
        if "transfer" not in self.plan.phases:
            self.transferred = self._changed()
        self.log.coefficients += coefficient_rows(mechanisms_of(self.student), 0)
        self.log.go_on()

    def _train(self, phase: Phase) -> None:
        p = self.params
        for parts in self.batches.read(phase):
            loss, kl, norm = self.update(phase, parts)
            phase.step += 1
            self._check_finite(loss, norm, phase.total_step)
            if phase.total_step in self.plan.marks:
                self.kept[phase.total_step] = self._changed()
            if phase.step % p.log_every == 0 or phase.is_over:
                self._log_point(phase, loss, kl, norm)
            stops = p.patience is not None and phase.since >= p.patience
            if phase.step % p.checkpoint_every == 0 or phase.is_over or stops:
                self._save(phase)
            if stops:
                break

    def _backward(self, phase: Phase, part: Part, parts: int, last: bool) -> tuple[Tensor, Tensor | None]:
        with nullcontext() if last else self.group.without_sync(phase.module):
            loss, kl = phase.module(*part)
            (loss / parts).backward()
        return loss.detach(), None if kl is None else kl.detach()

    def _check_finite(self, loss: Tensor, norm: Tensor, step: int) -> None:
        """On a GPU only where the log is written anyway: a look at every step would make it wait."""
        looks = self.device.type == "cpu" or step % self.params.log_every == 0
        if not looks or (math.isfinite(float(loss)) and math.isfinite(float(norm))):
            return
        saved = load_run(self.checkpoint)
        last = f"step {saved.before + saved.step} ({self.checkpoint.file})" if saved and self.checkpoint else "none"
        raise RunError(
            f"{self.variant.name}, seed {self.seeds.run}: the loss is {float(loss)} and its gradient norm "
            f"{float(norm)} at step {step}; last good checkpoint: {last}; a lower learning rate may help"
        )

    def _log_point(self, phase: Phase, loss: Tensor, kl: Tensor | None, norm: Tensor) -> None:
        valid = None
        if phase.step % self.params.valid_every == 0 or phase.is_over:
            valid = self.valid_kl()
            if self.params.patience is not None:
                phase.keep_best(valid)
        wall, cpu = self.log.pause()
        step, tokens = phase.total_step, self.log.tokens + self.batches.predicted(phase)
        row = HistoryRow(
            phase=phase.name,
            step=step,
            tokens=tokens,
            loss=round(float(self.group.mean(loss)), 6),
            kl=None if kl is None else round(float(self.group.mean(kl)), 6),
            valid_kl=None if valid is None else round(valid, 6),
            lr=phase.optimizer.param_groups[-1]["lr"],
            grad_norm=round(float(norm), 6),
            tokens_per_s=round(tokens / wall, 1),
            wall_s=round(wall, 3),
            cpu_s=round(cpu, 3),
            **memory_in_use(self.device),
        )
        self.log.history.append(row)
        self.log.coefficients += coefficient_rows(mechanisms_of(self.student), step)
        self.progress(step, self.plan.steps, row)

    def _finish(self, phase: Phase) -> None:
        """Put the best parameters back where they were kept, end the phase and write its row."""
        seconds = self.log.pause()[0] - sum(row.seconds for row in self.log.phases)
        phase.restore_best()
        phase.objective.end()
        if phase.name == "transfer":
            self.transferred = self._changed()
        kl_end = self.log.history[-1].valid_kl if phase.best is None else round(phase.best[0], 6)
        assert kl_end is not None, "the last step of a phase is a look at the validation KL"
        row = PhaseRow(
            phase=phase.name,
            steps=phase.step,
            long_steps=phase.steps_by_length[1],
            tokens=self.batches.predicted(phase),
            lr=phase.params.lr,
            mechanism_lr=phase.params.mechanism_lr or phase.params.lr,
            train=phase.params.train,
            trained_parameters=sum(t.numel() for t in phase.trainable.parameters()),
            seconds=round(seconds, 3),
            flops=sum(self.log.flops[phase.name, length] * n for length, n in self.batches.steps_by_length(phase)),
            kl_end=kl_end,
        )
        self.log.phases.append(row)
        self.group.wait()

    def _changed(self) -> dict[str, Tensor]:
        """`changed_weights` in the main process, which all call together; no tensors in the others."""
        return changed_weights(self.student, self.dataset.teacher, self.group.main)

    def _save(self, phase: Phase) -> None:
        if self.checkpoint is None or not (self.group.main or self.group.shards):
            return
        state = state_of(phase, self.dataset.teacher, self.kept, self.transferred, self.log, self.group.main)
        if self.group.main:
            save_run(self.checkpoint, state)
