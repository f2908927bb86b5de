"""The training run of the bundled teacher: steps, checkpoints, the record."""

import copy
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnopt.core.checkpoint import Checkpoint, checkpoint_key
from attnopt.core.code import code_digest
from attnopt.core.files import read_json, sha256
from attnopt.core.machine import environment
from attnopt.core.progress import progress_bar
from attnopt.tools.pretrain.circuit import match_loss
from attnopt.tools.pretrain.measure import ALONG, CHECK, FINAL, HOW, figures
from attnopt.tools.pretrain.mix import HOME, MIX, Batch, Source, batch_of_step, source_of
from attnopt.tools.pretrain.model import MATCHING, SHAPE, grown_model, optimizers, rate, save_teacher, set_rate
from attnopt.tools.pretrain.text import TEXT, train_tokenizer, training_text

SHORT, LONG, TOKENS, LONG_EVERY, SAVE_EVERY = 256, 1024, 8192, 2, 50
GUIDE = 0.5
"""Weight of the loss on where heads look, at the start; it falls to zero with the rate."""
AVERAGED, APART = 4, 3
"""The weights that are written are the mean of so many saves, the last and every third before it (Izmailov et al. 2018,
arXiv:1803.05407)."""


def pretrain(wikitext: Path, out: Path, steps: int, lr: float, seed: int, start: Path) -> dict[str, Any]:
    """Train the bundled teacher and write it to `out`; goes on where an earlier one stopped.

    A call goes on from one with the same rate, seed and start. It may name other `steps`: the schedule changes there,
    and the record's history says for each entry under how many steps it was reached.

    Args:
        wikitext: WikiText-2's folder with train.txt (the valid and test files are not opened).
        out: folder for the tokenizer, the float16 safetensors and training.json.
        steps: optimizer steps of TOKENS tokens.
        start: folder of the smaller teacher that is grown and trained on.

    Returns: the training record, whose figures are those of the float16 weights.

    Raises:
        UserError: train.txt is missing, `start` cannot be grown from, or another process runs the same training.
    """
    texts, held_out, home = training_text(wikitext)
    tokenizer = train_tokenizer(texts)
    source = source_of(tokenizer, texts, home)
    inputs = (sha256(*texts), SHAPE, sha256(start / "model.safetensors"))
    checkpoint = Checkpoint(checkpoint_key("pretrain", lr, seed, *inputs, code_digest(__name__)))
    with checkpoint.locked():
        training = Training(grown_model(start, seed), lr)
        training.resume(checkpoint.load())
        training.run(source, steps, seed, lambda: figures(training.model, tokenizer, held_out, ALONG), checkpoint.save)
        written = training.averaged()
        rounded = _rounded(written)
        found = figures(rounded, tokenizer, held_out, FINAL)
        record: dict[str, Any] = {"steps": steps, "tokens": steps * TOKENS, "lr": lr, "seed": seed}
        record |= {"start": _origin(start), "seconds": round(training.seconds)}
        record |= {"averaged": AVERAGED, "mix": MIX | {"home": HOME}, "blocks": _blocks()}
        record |= {"training_text": TEXT, "training_tokens": len(source.stream), "sha256": sha256(*texts)}
        record |= {"figures": found, "measured": HOW, "history": training.history, "environment": environment()}
        record |= {"figures_on_the_first_article": figures(rounded, tokenizer, held_out[:1], CHECK)}
        save_teacher(written, tokenizer, out, record)
    checkpoint.remove()
    return record


class Training:
    """A model, its optimizers and how far they are; `state` and `resume` carry all of it from process to process."""

    def __init__(self, model: Any, lr: float):
        self.model, self.lr = model, lr
        self.opts = optimizers(model, lr)
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, Any]] = []
        self.saved: deque[dict[str, Tensor]] = deque(maxlen=(AVERAGED - 1) * APART + 1)

    def run(
        self, source: Source, steps: int, seed: int, measure: Callable[[], dict[str, Any]], save: Callable[[Any], None]
    ) -> None:
        """Train up to step `steps`; every SAVE_EVERY steps, and at the end, measure and save."""
        loss_of = torch.compile(partial(_loss, self.model), dynamic=False)
        with progress_bar(name="pretrain", unit="step", total=steps) as progress:
            while self.step < steps:
                started = time.perf_counter()
                guide = torch.tensor(GUIDE * (1 - self.step / steps))
                lr = self.lr * rate(self.step, steps)
                loss = self.update(loss_of, batch(source, seed, self.step), guide, lr)
                self.step, self.seconds = self.step + 1, self.seconds + time.perf_counter() - started
                progress.update(self.step - progress.n)
                if self.step % SAVE_EVERY == 0 or self.step == steps:
                    reached = {"step": self.step, "steps": steps, "loss": loss, "seconds": round(self.seconds)}
                    self.history.append(reached | measure())
                    progress.write(str(self.history[-1]))
                    self.saved.append({name: t.clone() for name, t in self.model.state_dict().items()})
                    save(self.state())

    def update(self, loss_of: Callable[..., tuple[Tensor, Tensor]], batch: Batch, guide: Tensor, lr: float) -> float:
        """One optimizer step; returns the loss before it."""
        total, loss = loss_of(*vars(batch).values(), guide)
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        set_rate(self.opts, lr)
        for opt in self.opts:
            opt.step()
            opt.zero_grad()
        return loss.item()

    def state(self) -> dict[str, Any]:
        moving = {"model": self.model.state_dict(), "opts": [opt.state_dict() for opt in self.opts]}
        done = {"step": self.step, "seconds": self.seconds, "history": self.history, "saved": [*self.saved]}
        return moving | done | {"rng": torch.get_rng_state()}

    def resume(self, state: dict[str, Any] | None) -> None:
        """Go on from a state, if there is one."""
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        for opt, saved in zip(self.opts, state["opts"], strict=True):
            opt.load_state_dict(saved)
        torch.set_rng_state(state["rng"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.saved.extend(state["saved"])

    def averaged(self) -> Any:
        """A copy of the model with the mean of the saves' weights."""
        model, saved = copy.deepcopy(self.model), [*self.saved][::-1][::APART]
        model.load_state_dict({n: torch.stack([kept[n] for kept in saved]).mean(0) for n in saved[0]})
        return model


def batch(source: Source, seed: int, step: int) -> Batch:
    """The step's rows: every LONG_EVERY-th step has long blocks, the others short ones, all of them TOKENS tokens."""
    length = LONG if step % LONG_EVERY == LONG_EVERY - 1 else SHORT
    return batch_of_step(source, seed, step, TOKENS // length, length)


def _loss(
    model: Any, ids: Tensor, counts: Tensor, positions: Tensor, sources: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """What is trained on, and the part of it that is the language model's loss.

    Args:
        weight: of the second part, the heads of MATCHING's negative log weight on where the next token stood before.
    """
    with torch.autocast("cpu", torch.bfloat16):
        out = model(input_ids=ids, position_ids=positions, use_cache=False, output_hidden_states=True)
        matched = [match_loss(model.transformer.h[i], out.hidden_states[i], h, sources) for i, h in MATCHING]
    nll = F.cross_entropy(out.logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    kept = counts[:, 1:].flatten()
    loss = (nll * kept).sum() / kept.sum()
    return loss + weight * torch.stack(matched).sum(), loss


def _rounded(model: Any) -> Any:
    """The model as it is written: its weights rounded to float16."""
    return copy.deepcopy(model).half().float()


def _origin(start: Path) -> dict[str, Any]:
    """What the run began with: the smaller teacher's name, its weights' digest and the tokens that it had seen."""
    tokens = read_json(start / "training.json")["tokens"]
    return {"name": start.name, "sha256": sha256(start / "model.safetensors"), "tokens": tokens}


def _blocks() -> str:
    return f"{SHORT} tokens, every {LONG_EVERY}th step {LONG}; {TOKENS} tokens a step"
