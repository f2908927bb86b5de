"""The training run of the bundled teacher: steps, checkpoints, the record."""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnopt.core.checkpoint import Checkpoint, key_of
from attnopt.core.files import sha256
from attnopt.core.machine import environment
from attnopt.core.progress import progress_bar
from attnopt.tools.pretrain.measure import ALONG, FINAL, HOW, figures
from attnopt.tools.pretrain.mix import MIX, Batch, Source, batch_of_step, source_of
from attnopt.tools.pretrain.model import MINI, SHAPE, grown_model, optimizers, rate, save_teacher, set_rate
from attnopt.tools.pretrain.text import TEXT, train_tokenizer, training_text

SHORT, LONG, TOKENS, LONG_EVERY, SAVE_EVERY = 256, 1024, 8192, 4, 100


def pretrain(wikitext: Path, out: Path, steps: int, lr: float, seed: int, start: Path = MINI) -> dict[str, Any]:
    """Train the bundled teacher and write it to `out`; goes on where an earlier one stopped.

    A call goes on from one with the same rate, seed and start. It may name other `steps`: the schedule changes there,
    and the record's history says for each entry under how many steps it was reached.

    Args:
        wikitext: WikiText-2's folder with train.txt (the valid and test files are not opened).
        out: folder for the tokenizer, the float16 safetensors and training.json.
        steps: optimizer steps of TOKENS tokens.
        start: folder of the smaller teacher that is grown and trained on.

    Returns: the training record.

    Raises:
        UserError: train.txt is missing, or another process runs the same training.
    """
    texts, held_out = training_text(wikitext)
    tokenizer = train_tokenizer(texts)
    source = source_of(tokenizer, texts)
    checkpoint = Checkpoint(key_of("pretrain", lr, seed, sha256(*texts), SHAPE, sha256(start / "model.safetensors")))
    with checkpoint.locked(), progress_bar(name="pretrain", unit="step", total=steps) as progress:
        model = grown_model(start, seed)
        opts = optimizers(model, lr)
        step, seconds, history = _resume(checkpoint, model, opts)
        loss_of = torch.compile(partial(_loss, model), dynamic=False)
        while step < steps:
            started = time.perf_counter()
            loss = _step(loss_of, batch(source, seed, step), model, opts, lr * rate(step, steps))
            step, seconds = step + 1, seconds + time.perf_counter() - started
            progress.update(step - progress.n)
            if step % SAVE_EVERY == 0 or step == steps:
                history.append({"step": step, "steps": steps, "loss": loss.item(), "seconds": round(seconds)})
                history[-1] |= figures(model, tokenizer, held_out, ALONG)
                progress.write(str(history[-1]))
                moving = {"model": model.state_dict(), "opts": [opt.state_dict() for opt in opts]}
                moving |= {"rng": torch.get_rng_state()}
                checkpoint.save({"step": step, "seconds": seconds, "history": history, **moving})
        record: dict[str, Any] = {
            "steps": steps,
            "tokens": steps * TOKENS,
            "lr": lr,
            "seed": seed,
            "start": _origin(start),
        }
        record |= {"seconds": round(seconds), "mix": MIX, "blocks": _blocks(), "training_text": TEXT}
        record |= {"training_tokens": len(source.stream), "sha256": sha256(*texts)}
        record |= {"figures": figures(model, tokenizer, held_out, FINAL), "measured": HOW}
        record |= {"history": history, "environment": environment()}
        save_teacher(model, tokenizer, out, record)
    checkpoint.remove()
    return record


def batch(source: Source, seed: int, step: int) -> Batch:
    """The step's rows: every LONG_EVERY-th step has long blocks, the others short ones, all of them TOKENS tokens."""
    length = LONG if step % LONG_EVERY == LONG_EVERY - 1 else SHORT
    return batch_of_step(source, seed, step, TOKENS // length, length)


def _blocks() -> str:
    return f"{SHORT} tokens, every {LONG_EVERY}th step {LONG}; {TOKENS} tokens a step"


def _origin(start: Path) -> dict[str, Any]:
    """What the run began with: the smaller teacher's name, its weights' digest and the tokens that it had seen."""
    record = json.loads((start / "training.json").read_text(encoding="utf-8"))
    return {"name": start.name, "sha256": sha256(start / "model.safetensors"), "tokens": record["tokens"]}


def _loss(model: Any, ids: Tensor, counts: Tensor, positions: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, :-1]
    nll = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    kept = counts[:, 1:].flatten()
    return (nll * kept).sum() / kept.sum()


def _step(loss_of: Any, batch: Batch, model: Any, opts: list[torch.optim.Optimizer], lr: float) -> Tensor:
    loss = loss_of(batch.ids, batch.counts, batch.positions)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    set_rate(opts, lr)
    for opt in opts:
        opt.step()
        opt.zero_grad()
    return loss.detach()


def _resume(checkpoint: Checkpoint, model: Any, opts: list[torch.optim.Optimizer]) -> tuple[int, float, list]:
    state = checkpoint.load()
    if state is None:
        return 0, 0.0, []
    model.load_state_dict(state["model"])
    for opt, saved in zip(opts, state["opts"], strict=True):
        opt.load_state_dict(saved)
    torch.set_rng_state(state["rng"])
    return state["step"], state["seconds"], state["history"]
