"""The trainer against the plain loop that anyone would write: tokens per second and peak memory.

    python benchmarks/distill.py                 # the bundled teacher's shape and GPT-2 small's
    python benchmarks/distill.py --shapes gpt2 --rounds 5 --accumulate 2    # the trainer's batch in two parts

Plain: two Hugging Face models, all logits of both, F.kl_div, float32. Trainer: the teacher's final hidden states from
the cache, the chunked loss, and autocast where the hardware gains by it (`--precision float32` takes that away). Both
train the same weights of the same student. They take turns, step by step, in one process; peak memory is that of a
fresh process each, above what lies in memory before the first step.
"""

import argparse
import atexit
import copy
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from attnopt import mechanisms
from attnopt.core.machine import environment
from attnopt.records.teacher import StoredSplit
from attnopt.student import build as students
from attnopt.targets import store as cache
from attnopt.targets.dataset import Dataset
from attnopt.teacher.head import hidden_states
from attnopt.teacher.model import fused
from attnopt.training.params import AlignParams, DistillParams, LoraParams, SeedParams, Seeds, TransferParams, Variant
from attnopt.training.schedule import make_optimizer
from attnopt.training.trainer import Trainer

SHAPES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "bundled": (
        {"n_layer": 4, "n_embd": 256, "n_head": 4, "vocab_size": 4096, "activation_function": "gelu_pytorch_tanh"},
        (8, 128),
    ),
    "gpt2": ({"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257}, (4, 256)),
}
"""By name: the model, and the batch of blocks x tokens."""
PLAIN: dict[str, Any] = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0, "bos_token_id": 0, "eos_token_id": 0}
STEPS = 64

Step = Callable[[int], None]


def make(shape: str, mechanism: str, precision: Any, accumulate: int) -> tuple[Dataset, Variant]:
    """A random model of the shape as teacher, random text, and the teacher's hidden states in memory."""
    config, (batch, tokens) = SHAPES[shape]
    torch.manual_seed(0)
    teacher: Any = GPT2LMHeadModel(GPT2Config(**config, **PLAIN, n_positions=tokens))
    teacher.eval().requires_grad_(False)
    blocks = np.random.default_rng(0).integers(0, config["vocab_size"], (2 * batch, tokens))

    def encode(rows: range) -> Iterator[dict[str, np.ndarray]]:
        for row in rows:
            yield {"hidden": hidden_states(teacher, torch.from_numpy(blocks[row][None]))[0].half().numpy()}

    folder = Path(tempfile.mkdtemp(prefix="attnopt-"))
    atexit.register(shutil.rmtree, folder)
    with torch.no_grad():
        parts = cache.write_store(folder, len(blocks), batch, encode)
    size = sum(part.bytes for part in parts)
    entry = StoredSplit(form="hidden", bytes_per_token=size / blocks.size, blocks=len(blocks), bytes=size, parts=parts)
    cached = cache.Stored(folder, entry)
    dataset = Dataset(teacher, dict.fromkeys(("train", "valid"), blocks), dict.fromkeys(("train", "valid"), cached))
    cls = mechanisms.load_mechanism(mechanism)
    variant = Variant(
        name=mechanism,
        kind=mechanism,
        options=cls.Options(),
        seeds=[0],
        seed=SeedParams(),
        transfer=TransferParams(),
        align=AlignParams(),
        distill=DistillParams(steps=STEPS, batch=batch, precision=precision, accumulate=accumulate),
        lora=LoraParams(),
    )
    return dataset, variant


def trainer_step(dataset: Dataset, variant: Variant) -> Step:
    teacher = fused(copy.deepcopy(dataset.teacher))  # as `attnopt.teacher.model.load_teacher` does
    trainer = Trainer(replace(dataset, teacher=teacher), variant, Seeds(0, 0, 0))
    trainer.prepare()
    phase = trainer.start("distill")
    trainer.log.flops["distill", trainer.batches.short.length] = 0
    batches = trainer.batches.read(phase)

    def step(_: int) -> None:
        trainer.update(phase, next(batches))

    return step


def plain_step(dataset: Dataset, variant: Variant) -> Step:
    student, teacher = students.build_student(dataset.teacher, variant.swap, 0), dataset.teacher
    student.requires_grad_(False)
    trainable = students.choose_trainable(student, variant.distill.train)
    for parameter in trainable.parameters():
        parameter.requires_grad_(True)
    optimizer = make_optimizer(trainable, variant.distill, 0.0)
    blocks, batch = dataset.blocks["train"], variant.distill.batch

    def step(i: int) -> None:
        ids = torch.from_numpy(blocks[i % 2 * batch :][:batch])
        with torch.no_grad():
            theirs = teacher(ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        ours = student(ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        loss = F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="batchmean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


LOOPS = {"plain": plain_step, "trainer": trainer_step}


def seconds(step: Step, i: int) -> float:
    start = time.perf_counter()
    step(i)
    return time.perf_counter() - start


def speeds(shape: str, args: Any) -> dict[str, list[float]]:
    """Tokens per second of each loop, round by round, after two rounds to warm up."""
    dataset, variant = make(shape, args.mechanism, args.precision, args.accumulate)
    steps = {name: make_step(dataset, variant) for name, make_step in LOOPS.items()}
    batch, tokens = SHAPES[shape][1]
    found: dict[str, list[float]] = {name: [] for name in LOOPS}
    for i in range(args.rounds + 2):
        for name, step in steps.items():
            took = seconds(step, i)
            if i >= 2:
                found[name].append(batch * (tokens - 1) / took)
    return found


def peak(shape: str, name: str, args: Any) -> float:
    """MiB that two steps of a loop take above what lay in memory before, in this process."""
    dataset, variant = make(shape, args.mechanism, args.precision, args.accumulate)
    step = LOOPS[name](dataset, variant)
    process, highest, done = psutil.Process(), 0, threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for i in range(2):
        step(i)
    done.set()
    watcher.join()
    return (highest - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--mechanism", default="hedgehog")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--accumulate", type=int, default=1, help="parts that the trainer takes a batch in")
    parser.add_argument("--peak-of", nargs=2, metavar=("SHAPE", "LOOP"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        shape, loop = args.peak_of
        print(json.dumps(peak(shape, loop, args)))
        return
    env = environment()
    print(f"{env['cpu']}, {env['cores']} cores, torch {env['torch']}")
    print(f"student: {args.mechanism}; the trainer's batch in {args.accumulate} parts\n")
    print("| shape | loop | tokens/s | faster | peak above the start, MiB | of plain |\n|---|---|---:|---:|---:|---:|")
    for shape in args.shapes:
        found = speeds(shape, args)
        memory = {name: _fresh(args, shape, name) for name in LOOPS}
        for name, rates in found.items():
            faster = statistics.median(a / b for a, b in zip(rates, found["plain"], strict=True))
            share = memory[name] / memory["plain"]
            cells = [
                shape,
                name,
                f"{statistics.median(rates):.0f}",
                f"{faster:.2f}x",
                f"{memory[name]:.0f}",
                f"{share:.2f}",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


def _fresh(args: Any, shape: str, name: str) -> float:
    command = [sys.executable, __file__, "--mechanism", args.mechanism, "--precision", args.precision]
    command += ["--accumulate", str(args.accumulate), "--peak-of", shape, name]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(out.stdout)


if __name__ == "__main__":
    main()
