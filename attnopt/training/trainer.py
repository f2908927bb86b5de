"""The one trainer of all variants: its stages in turn, each AdamW on an objective, resumable to the bit."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attnopt import mechanisms
from attnopt.conformance import leak
from attnopt.core import distributed as processes
from attnopt.core.checkpoint import Checkpoint
from attnopt.core.device import memory_in_use, resolve_device, resolve_precision, token_ids
from attnopt.core.errors import RunError, UserError
from attnopt.student import build as students
from attnopt.student.attach import mechanisms_of
from attnopt.student.build import Trainable
from attnopt.student.distance import per_token
from attnopt.student.files import changed_weights
from attnopt.targets.dataset import Dataset
from attnopt.teacher.head import head_of
from attnopt.training.log import TrainingLog, coefficient_rows
from attnopt.training.params import DistillParams, Seeds, StageParams, Variant
from attnopt.training.phases import OBJECTIVES, Objective
from attnopt.training.schedule import batch_rows, factor, make_optimizer, total_steps

Part = tuple[Tensor, Any]
"""Blocks (b, T) of token ids, and what the teacher says of them where the objective asks."""


@dataclass
class Stage:
    """A stage while it runs.

    Attributes:
        before: steps of the stages before it. step: its own steps so far. module: the objective, wrapped for several
        processes. best: the lowest validation KL so far and the parameters then; since: looks without a new one.
    """

    objective: Objective
    params: StageParams
    steps: int
    before: int
    module: nn.Module
    trainable: Trainable
    optimizer: torch.optim.Optimizer
    step: int = 0
    best: tuple[float, dict[str, Tensor]] | None = None
    since: int = 0

    @property
    def name(self) -> str:
        return self.objective.name


class Trainer:
    """Distils one variant with one seed.

    Args:
        checkpoint: where the run is kept while it goes on; None keeps nothing.
        progress: called with (step, steps, row) at every log point.

    Attributes:
        plan: steps by stage. kept: what `changed` gives of the student after each step that `distill.keep` asks for.
    """

    def __init__(
        self,
        material: Dataset,
        variant: Variant,
        seeds: Seeds,
        checkpoint: Checkpoint | None = None,
        progress: Callable[[int, int, dict], None] = lambda *_: None,
    ):
        self.material, self.variant, self.seeds = material, variant, seeds
        self.checkpoint, self.progress = checkpoint, progress
        self.params: DistillParams = variant.distill
        self.group = processes.join_group(resolve_device(self.params.device))
        self.device = self.group.device
        self.dtype = resolve_precision(self.params.precision, self.device)
        material.teacher.to(self.device)
        self.student = students.build_student(material.teacher, variant.swap, seeds.features).to(self.device)
        refuse_leaks(self.student)
        self.teacher_head, self.head = head_of(material.teacher), head_of(self.student)
        self.blocks = material.blocks["train"]
        self.objectives: dict[str, Objective] = {}
        self.plan = self._plan()
        self.steps = sum(self.plan.values())
        self.marks = self._marks()
        self.kept: dict[int, dict[str, Tensor]] = {}
        self.journal = TrainingLog()

    def run(self) -> Any:
        """Train to the end, from the last checkpoint where there is one; returns the student."""
        state = self.checkpoint.load() if self.checkpoint else None
        before = 0
        if state is None:
            self._begin()
        else:
            self.journal, before, self.kept = TrainingLog(**state["journal"]), state["before"], state["kept"]
        names = list(self.plan)
        for name in names[names.index(state["stage"]) if state else 0 :]:
            stage = self.start(name, before, state)
            self._train(stage)
            self._finish(stage)
            before, state = before + stage.step, None
        self.steps = before
        self.journal.pause()
        return self.student

    def valid_kl(self) -> float:
        """Forward KL on the first valid blocks, in nats per token."""
        blocks = self.material.blocks["valid"][: self.params.valid_blocks]
        theirs = partial(self.material.hidden, "valid")
        tokens = per_token(self.student, self.head, theirs, self.teacher_head, blocks)
        return float(tokens["kl_forward"].mean(dtype=np.float64))

    def record(self) -> dict[str, Any]:
        """What the run was and cost: budget, KL before and after, parameters, floating-point operations, time."""
        journal, tokens = self.journal, self.tokens(self.steps)
        return {
            "control": mechanisms.load_mechanism(self.variant.kind).control,
            "start": self.variant.weights,
            "data_seed": self.seeds.data,
            "features_seed": self.seeds.features,
            "budget": self.params.model_dump() | {"steps": self.steps, "tokens": tokens, "block": self.blocks.shape[1]},
            "precision": str(self.dtype).removeprefix("torch."),
            "processes": self.group.size,
            "kl_start_unfitted": journal.kl["unfitted"],
            "kl_start": journal.kl["start"],
            "kl_end": journal.stages[-1]["kl_end"] if journal.stages else journal.kl["start"],
            "stages": journal.stages,
            "flops": sum(stage["flops"] for stage in journal.stages),
            "trained_parameters": max((stage["trained_parameters"] for stage in journal.stages), default=0),
            "total_parameters": sum(t.numel() for t in self.student.parameters()),
            "seconds": round(journal.wall, 2),
            "cpu_seconds": round(journal.cpu, 2),
            "tokens_per_s": round(tokens / journal.wall, 1) if self.steps else None,
        }

    def tokens(self, steps: int) -> int:
        """Predicted tokens in so many steps."""
        return steps * self.params.batch * (self.blocks.shape[1] - 1)

    def _plan(self) -> dict[str, int]:
        """Steps by stage, for the stages that have any and something to train."""
        plan = {}
        for name in OBJECTIVES:
            steps = total_steps(self.variant.stage(name), self.params.batch, len(self.blocks))
            if not steps:
                continue
            objective = OBJECTIVES[name](self.student, self.material, self.variant, self.dtype)
            if objective.trainable().parameters():
                plan[name], self.objectives[name] = steps, objective
        return plan

    def _marks(self) -> set[int]:
        """Steps after which a student is kept. Raises UserError where that is within lora: no plain model."""
        marks = {round(share * self.steps) for share in self.params.keep} - {0, self.steps}
        if marks and max(marks) > self.steps - self.plan.get("lora", 0):
            raise UserError(
                f"{self.variant.name}: distill.keep: {max(self.params.keep)} of {self.steps} steps lies within the "
                "stage lora, whose student is not merged yet; allowed: earlier shares"
            )
        return marks

    def _begin(self) -> None:
        self.journal.kl["unfitted"] = self.valid_kl()
        if self.params.fit:
            students.fit_mechanisms(self.student, self.material.teacher, self.blocks[: self.params.fit_blocks])
        self.journal.kl["start"] = self.valid_kl()
        self.journal.coefficients += coefficient_rows(mechanisms_of(self.student), 0)
        self.journal.go_on()

    def start(self, name: str, before: int = 0, state: dict[str, Any] | None = None) -> Stage:
        """Begin a stage of the plan after `before` steps of others, or go on with it from a checkpoint's state."""
        objective = self.objectives[name]
        trainable = objective.begin()
        params: StageParams = self.variant.stage(name)
        optimizer = make_optimizer(trainable, params, self.params.weight_decay)
        module = self.group.wrap(objective)
        stage = Stage(objective, params, self.plan[name], before, module, trainable, optimizer)
        if state is not None:
            self.student.load_state_dict(state["student"], strict=False)
            optimizer.load_state_dict(state["optimizer"])
            stage.step, stage.best, stage.since = state["step"], state["best"], state["since"]
        return stage

    def _train(self, stage: Stage) -> None:
        p = self.params
        for parts in self.batches(stage):
            loss, kl, norm = self.update(stage, parts)
            stage.step += 1
            end = stage.step == stage.steps
            self._check_finite(loss, norm, stage.before + stage.step)
            if stage.before + stage.step in self.marks:
                self.kept[stage.before + stage.step] = changed_weights(self.student, self.material.teacher)
            if stage.step % p.log_every == 0 or end:
                self._record(stage, loss, kl, norm)
            stop = p.patience is not None and stage.since >= p.patience
            if stage.step % p.checkpoint_every == 0 or end or stop:
                self._save(stage)
            if stop:
                break

    def batches(self, stage: Stage) -> Iterator[list[Part]]:
        """The parts of each step's batch; on a GPU read one step ahead, while it computes."""
        steps = range(stage.step, stage.steps)
        fetch = partial(self._fetch, stage)
        if self.device.type != "cuda":
            yield from map(fetch, steps)
            return
        with ThreadPoolExecutor(1) as pool:
            ahead = [pool.submit(fetch, step) for step in steps[:1]]
            for step in steps:
                parts = ahead.pop().result()
                ahead = [pool.submit(fetch, step + 1)] if step + 1 in steps else []
                yield parts

    def _fetch(self, stage: Stage, step: int) -> list[Part]:
        """This process' share of a step's blocks, in as many parts as `accumulate` says."""
        p, at = self.params, stage.before + step
        share = batch_rows(len(self.blocks), p.batch, at, self.seeds.data)[self.group.rank :: self.group.size]
        parts = []
        for rows in np.array_split(share, p.accumulate):
            ids = token_ids(self.blocks[rows], self.device)
            wanted = stage.objective.needs_targets
            parts.append((ids, self.material.targets("train", rows, ids) if wanted else None))
        return parts

    def update(self, stage: Stage, parts: list[Part]) -> tuple[Tensor, Tensor | None, Tensor]:
        """One update; returns the loss, the divergence where there is one, and the gradient's norm, on the device."""
        for group in stage.optimizer.param_groups:
            group["lr"] = group["peak"] * factor(stage.step, stage.steps, stage.params.warmup)
        counts = stage.name not in self.journal.flops
        counter = FlopCounterMode(display=False)
        with counter if counts else nullcontext():
            found = [self._backward(stage, part, len(parts), i + 1 == len(parts)) for i, part in enumerate(parts)]
        if counts:
            self.journal.flops[stage.name] = counter.get_total_flops() * self.group.size
        norm = nn.utils.clip_grad_norm_(stage.trainable.parameters(), self.params.clip)
        stage.optimizer.step()
        stage.optimizer.zero_grad(set_to_none=True)
        losses, kls = zip(*found, strict=True)
        return torch.stack(losses).mean(), None if kls[0] is None else torch.stack(kls).mean(), norm

    def _backward(self, stage: Stage, part: Part, parts: int, last: bool) -> tuple[Tensor, Tensor | None]:
        with nullcontext() if last else self.group.without_sync(stage.module):
            loss, kl = stage.module(*part)
            (loss / parts).backward()
        return loss.detach(), None if kl is None else kl.detach()

    def _check_finite(self, loss: Tensor, norm: Tensor, step: int) -> None:
        """On a GPU only where the log is written anyway: a look at every step would make it wait."""
        looks = self.device.type == "cpu" or step % self.params.log_every == 0
        if looks and not (math.isfinite(float(loss)) and math.isfinite(float(norm))):
            saved = self.checkpoint and self.checkpoint.load()
            at = f"step {saved['before'] + saved['step']}" if saved else ""
            last = f"{at} ({self.checkpoint.file})" if saved and self.checkpoint else "none"
            raise RunError(
                f"{self.variant.name}, seed {self.seeds.run}: the loss is {float(loss)} and its gradient norm "
                f"{float(norm)} at step {step}; last good checkpoint: {last}; a lower learning rate may help"
            )

    def _record(self, stage: Stage, loss: Tensor, kl: Tensor | None, norm: Tensor) -> None:
        looks = stage.step % self.params.valid_every == 0 or stage.step == stage.steps
        valid = self._look(stage) if looks else None
        wall, cpu = self.journal.pause()
        step = stage.before + stage.step
        row = {
            "stage": stage.name,
            "step": step,
            "tokens": self.tokens(step),
            "loss": round(float(self.group.mean(loss)), 6),
            "kl": None if kl is None else round(float(self.group.mean(kl)), 6),
            "valid_kl": None if valid is None else round(valid, 6),
            "lr": stage.optimizer.param_groups[-1]["lr"],
            "grad_norm": round(float(norm), 6),
            "tokens_per_s": round(self.tokens(step) / wall, 1),
            "wall_s": round(wall, 3),
            "cpu_s": round(cpu, 3),
            **memory_in_use(self.device),
        }
        self.journal.history.append(row)
        self.journal.coefficients += coefficient_rows(mechanisms_of(self.student), step)
        self.progress(step, self.steps, row)

    def _look(self, stage: Stage) -> float:
        """The validation KL; where the best is to be kept, it is kept here."""
        valid = self.valid_kl()
        if self.params.patience is not None:
            stage.since += 1
            if stage.best is None or valid < stage.best[0]:
                kept = {name: t.detach().clone() for name, t in stage.trainable.named().items()}
                stage.best, stage.since = (valid, kept), 0
        return valid

    def _finish(self, stage: Stage) -> None:
        """Put the best parameters back where they were kept, end the stage and write its row."""
        seconds = self.journal.pause()[0] - sum(s["seconds"] for s in self.journal.stages)
        if stage.best is not None:
            with torch.no_grad():
                for name, parameter in stage.trainable.named().items():
                    parameter.copy_(stage.best[1][name])
        stage.objective.end()
        row = {
            "stage": stage.name,
            "steps": stage.step,
            "tokens": self.tokens(stage.step),
            "lr": stage.params.lr,
            "mechanism_lr": stage.params.mechanism_lr or stage.params.lr,
            "train": stage.params.train,
            "trained_parameters": sum(t.numel() for t in stage.trainable.parameters()),
            "seconds": round(seconds, 3),
            "flops": self.journal.flops[stage.name] * stage.step,
            "kl_end": self.journal.history[-1]["valid_kl"] if stage.best is None else round(stage.best[0], 6),
        }
        self.journal.stages.append(row)
        self.group.wait()

    def _save(self, stage: Stage) -> None:
        if self.checkpoint is None or not self.group.main:
            return
        self.checkpoint.save(
            {
                "stage": stage.name,
                "before": stage.before,
                "step": stage.step,
                "kept": self.kept,
                "best": stage.best,
                "since": stage.since,
                "student": changed_weights(self.student, self.material.teacher),
                "optimizer": stage.optimizer.state_dict(),
                "journal": self.journal.state(),
            }
        )


def refuse_leaks(student: Any) -> None:
    """Raises UserError where a mechanism sees the future, unless it is marked as a control that does."""
    for mechanism in mechanisms_of(student):
        if mechanism.control != "leaks" and (reason := leak(mechanism)):
            raise UserError(f"{reason}: it would be told what it has to predict")
