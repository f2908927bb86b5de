"""The one trainer of all variants: AdamW on KL per token, resumable to the bit."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnopt import evaluate, mechanisms
from attnopt import student as students
from attnopt.checkpoint import Checkpoint
from attnopt.conformance import leak
from attnopt.device import autocast, memory, precision, resolve
from attnopt.errors import RunError, UserError
from attnopt.hf.attach import mechanisms_of
from attnopt.losses import LossSpec, distillation_loss
from attnopt.material import Material
from attnopt.params import DistillParams, Variant
from attnopt.teacher import head_of, hidden_states

HISTORY = (
    "step", "tokens", "loss", "kl", "valid_kl", "lr", "grad_norm", "tokens_per_s", "wall_s", "cpu_s",
    "rss_mib", "gpu_allocated_mib", "gpu_reserved_mib",
)  # fmt: skip
COEFFICIENTS = ("step", "layer", "head", "name", "value")


@dataclass
class Log:
    """The rows of history.csv and coefficients.csv, and the time spent, across resumptions."""

    history: list[dict[str, Any]] = field(default_factory=list)
    coefficients: list[dict[str, Any]] = field(default_factory=list)
    kl: dict[str, float] = field(default_factory=dict)
    wall: float = 0.0
    cpu: float = 0.0


class Trainer:
    """Distils one variant with one seed.

    Args:
        checkpoint: where the run is kept while it goes on; None keeps nothing.
        progress: called with (step, steps, row) at every log point.
    """

    def __init__(
        self,
        material: Material,
        variant: Variant,
        seed: int,
        checkpoint: Checkpoint | None = None,
        progress: Callable[[int, int, dict], None] = lambda *_: None,
    ):
        self.material, self.variant, self.seed = material, variant, seed
        self.checkpoint, self.progress = checkpoint, progress
        self.params: DistillParams = variant.distill
        self.device = resolve(self.params.device)
        self.dtype = precision(self.params.precision, self.device)
        material.teacher.to(self.device)
        self.student = students.build(material.teacher, variant, seed).to(self.device)
        refuse_leaks(self.student)
        self.teacher_head, self.head = head_of(material.teacher), head_of(self.student)
        self.own, self.others = students.choose_trainable(self.student, self.params.train)
        self.blocks = material.blocks["train"]
        self.steps = total_steps(self.params, len(self.blocks)) if self.own or self.others else 0
        self.log = Log()

    def run(self) -> Any:
        """Train to the end, from the last checkpoint where there is one; returns the student."""
        optimizer = self._optimizer()
        first = self._resume(optimizer)
        self._start = (time.perf_counter() - self.log.wall, time.process_time() - self.log.cpu)
        for step in range(first, self.steps):
            loss, kl, norm = self._step(optimizer, step)
            self._check_finite(loss, norm, step)
            if (step + 1) % self.params.log_every == 0 or step + 1 == self.steps:
                self._record(step + 1, loss, kl, norm, optimizer)
            if (step + 1) % self.params.checkpoint_every == 0 or step + 1 == self.steps:
                self._save(step + 1, optimizer)
        self.log.wall, self.log.cpu = self._spent()
        self.log.kl["end"] = self.valid_kl() if self.steps else self.log.kl["start"]
        return self.student

    def valid_kl(self) -> float:
        """Forward KL on the first valid blocks, in nats per token."""
        blocks = self.material.blocks["valid"][: self.params.valid_blocks]
        theirs = partial(self.material.hidden, "valid")
        tokens = evaluate.per_token(self.student, self.head, theirs, self.teacher_head, blocks)
        return float(tokens["kl_forward"].mean(dtype=np.float64))

    def record(self) -> dict[str, Any]:
        """What the run was and cost: budget, KL before and after, parameters, time."""
        p, trained = self.params, (*self.own.values(), *self.others.values())
        tokens = self.steps * p.batch * (self.blocks.shape[1] - 1)
        return {
            "control": mechanisms.load(self.variant.kind).control,
            "budget": p.model_dump() | {"steps": self.steps, "tokens": tokens, "block": self.blocks.shape[1]},
            "precision": str(self.dtype).removeprefix("torch."),
            "kl_start_unfitted": self.log.kl["unfitted"],
            "kl_start": self.log.kl["start"],
            "kl_end": self.log.kl["end"],
            "trained_parameters": sum(t.numel() for t in trained) if self.steps else 0,
            "total_parameters": sum(t.numel() for t in self.student.parameters()),
            "seconds": round(self.log.wall, 2),
            "cpu_seconds": round(self.log.cpu, 2),
            "tokens_per_s": round(tokens / self.log.wall, 1) if self.steps else None,
        }

    def _optimizer(self) -> torch.optim.Optimizer | None:
        p = self.params
        groups = [
            {"params": list(self.own.values()), "lr": p.mechanism_lr or p.lr},
            {"params": list(self.others.values()), "lr": p.lr},
        ]
        groups = [g for g in groups if g["params"]]
        if not groups:
            return None
        for group in groups:
            group["peak"] = group["lr"]
        return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=p.weight_decay, fused=True)

    def _step(self, optimizer: Any, step: int) -> tuple[Tensor, Tensor, Tensor]:
        p = self.params
        rows = batch_rows(len(self.blocks), p.batch, step, self.seed)
        ids = torch.from_numpy(self.blocks[rows].astype(np.int64)).to(self.device)
        targets = self.material.targets("train", rows, ids, step)
        spec = LossSpec(p.kl, p.ce_weight, p.temperature, p.loss_chunk)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(step, self.steps, p.warmup)
        with autocast(self.device, self.dtype):
            ours = hidden_states(self.student, ids)[:, :-1].flatten(0, 1)
            loss, kl = distillation_loss(ours, self.head, targets, ids[:, 1:].flatten(), spec)
        for mechanism in mechanisms_of(self.student):
            if (penalty := mechanism.penalty()) is not None:
                loss = loss + penalty
        loss.backward()
        norm = nn.utils.clip_grad_norm_((*self.own.values(), *self.others.values()), p.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach(), kl.detach(), norm

    def _check_finite(self, loss: Tensor, norm: Tensor, step: int) -> None:
        """On a GPU only where the log is written anyway: a look at every step would make it wait."""
        looks = self.device.type == "cpu" or (step + 1) % self.params.log_every == 0
        if looks and not (math.isfinite(float(loss)) and math.isfinite(float(norm))):
            saved = self.checkpoint and self.checkpoint.load()
            last = f"step {saved['step']} ({self.checkpoint.file})" if saved and self.checkpoint else "none"
            raise RunError(
                f"{self.variant.name}, seed {self.seed}: the loss is {float(loss)} and its gradient norm {float(norm)} "
                f"at step {step + 1}; last good checkpoint: {last}; a lower distill.lr may help"
            )

    def _record(self, step: int, loss: Tensor, kl: Tensor, norm: Tensor, optimizer: Any) -> None:
        p = self.params
        looks = step % p.valid_every == 0 or step == self.steps
        valid = round(self.valid_kl(), 6) if looks else None
        wall, cpu = self._spent()
        tokens = step * p.batch * (self.blocks.shape[1] - 1)
        row = {
            "step": step,
            "tokens": tokens,
            "loss": round(float(loss), 6),
            "kl": round(float(kl), 6),
            "valid_kl": valid,
            "lr": optimizer.param_groups[-1]["lr"],
            "grad_norm": round(float(norm), 6),
            "tokens_per_s": round(tokens / wall, 1),
            "wall_s": round(wall, 3),
            "cpu_s": round(cpu, 3),
            **memory(self.device),
        }
        self.log.history.append(row)
        self.log.coefficients += list(self._coefficients(step))
        self.progress(step, self.steps, row)

    def _coefficients(self, step: int) -> Iterator[dict[str, Any]]:
        for mechanism in mechanisms_of(self.student):
            for name, values in mechanism.coefficients().items():
                for head, value in enumerate(values.detach().flatten().tolist()):
                    row = {"step": step, "layer": mechanism.geometry.layer, "head": head, "name": name}
                    yield {**row, "value": round(value, 6)}

    def _spent(self) -> tuple[float, float]:
        return time.perf_counter() - self._start[0], time.process_time() - self._start[1]

    def _resume(self, optimizer: torch.optim.Optimizer | None) -> int:
        state = self.checkpoint.load() if self.checkpoint else None
        if state is None:
            self._begin()
            return 0
        self.student.load_state_dict(state["student"], strict=False)
        if optimizer is not None:
            optimizer.load_state_dict(state["optimizer"])
        self.log = Log(**state["log"])
        return state["step"]

    def _begin(self) -> None:
        self.log.kl["unfitted"] = self.valid_kl()
        if self.params.fit:
            students.fit(self.student, self.material.teacher, self.blocks[: self.params.fit_blocks])
        self.log.kl["start"] = self.valid_kl()
        self.log.coefficients += list(self._coefficients(0))

    def _save(self, step: int, optimizer: torch.optim.Optimizer | None) -> None:
        if self.checkpoint is None or optimizer is None:
            return
        self.log.wall, self.log.cpu = self._spent()
        moving = self.own.keys() | self.others.keys()
        state = {n: t for n, t in self.student.state_dict().items() if n in moving or ".mechanism." in n}
        log = vars(self.log)
        self.checkpoint.save({"step": step, "student": state, "optimizer": optimizer.state_dict(), "log": log})


def refuse_leaks(student: Any) -> None:
    """Raises UserError where a mechanism sees the future, unless it is marked as a control that does."""
    for mechanism in mechanisms_of(student):
        if mechanism.control != "leaks" and (reason := leak(mechanism)):
            raise UserError(f"{reason}: it would be told what it has to predict")


def total_steps(params: DistillParams, blocks: int) -> int:
    """Optimizer steps of the budget, given the number of training blocks."""
    return params.steps if params.steps is not None else math.ceil((params.epochs or 0) * blocks / params.batch)


def batch_rows(blocks: int, batch: int, step: int, seed: int) -> np.ndarray:
    """Indices of the blocks of a step: shuffled passes, each a permutation of its own; a function of its arguments."""
    wanted = np.arange(step * batch, (step + 1) * batch)
    orders = {e: np.random.default_rng([seed, e]).permutation(blocks) for e in set((wanted // blocks).tolist())}
    return np.array([orders[i // blocks][i % blocks] for i in wanted.tolist()])


def schedule(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine to zero, as a factor on the peak learning rate."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def write_csv(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Rows as CSV, with a header also where there are none; None is an empty cell."""
    import pandas as pd

    pd.DataFrame(rows, columns=list(columns)).to_csv(path, index=False)
