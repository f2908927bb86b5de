"""Attention transfer with the teacher's layers run at every step, and read from disk (`transfer.layers: cached`).

    python benchmarks/transfer.py                # the bundled teacher's shape, blocks of 512; under two minutes
    python benchmarks/transfer.py --tokens 1024 --shape smollm2
    python benchmarks/transfer.py --flops        # floating-point operations alone: the same on every machine

A random model as teacher and random text; both trainings take turns, step by step, in one process. What making the copy
costs is one pass of the teacher over the training text, once for all variants.
"""

import argparse
import os
import tempfile
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from attnopt import mechanisms
from attnopt.bench.clock import Limits, interleave, keep_freed_memory, quartiles, seconds
from attnopt.core.machine import environment
from attnopt.targets.dataset import Dataset
from attnopt.teacher.model import fused
from attnopt.training.params import AlignParams, DistillParams, LoraParams, SeedParams, Seeds, TransferParams, Variant
from attnopt.training.resume import Phase
from attnopt.training.trainer import Trainer

VARIANTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "window 124 + 4": ("window", {"window": 124, "sinks": 4}, "outputs"),
    "hedgehog_window": ("hedgehog", {"window": 16, "feature_dim": 256}, "weights"),
    "based": ("based", {"feature_dim": 32, "window": 16}, "outputs"),
    "performer": ("performer", {"features": 256}, "outputs"),
    "nsa": ("nsa", {"block": 8, "selected": 2, "window": 16}, "outputs"),
}
"""By name: a kind, its options and `transfer.loss`."""
BATCH_TOKENS = 1024


def make_teacher(shape: str) -> Any:
    torch.manual_seed(0)
    common: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": 4096}
    if shape == "bundled":
        dropout: dict[str, Any] = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
        small = GPT2Config(n_layer=5, n_embd=256, n_head=4, n_positions=1024, **dropout, **common)
        return fused(GPT2LMHeadModel(small).eval().requires_grad_(False))
    sizes: dict[str, Any] = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
    }
    config = LlamaConfig(**sizes, num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, **common)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def make_dataset(shape: str, tokens: int) -> Dataset:
    """Sixteen steps' text."""
    count = 16 * max(1, BATCH_TOKENS // tokens)
    blocks = np.random.default_rng(0).integers(0, 4096, (count, tokens), dtype=np.uint16)
    return Dataset(make_teacher(shape), dict.fromkeys(("train", "valid"), blocks), {})


def start(dataset: Dataset, name: str, layers: str) -> tuple[Trainer, Phase]:
    """A training that stands before its first step of transfer."""
    kind, options, loss = VARIANTS[name]
    batch = max(1, BATCH_TOKENS // dataset.blocks["train"].shape[1])
    variant = Variant(
        name=name,
        kind=kind,
        options=mechanisms.load_mechanism(kind).Options(**options),
        seeds=[0],
        seed=SeedParams(),
        transfer=TransferParams(steps=10_000, loss=loss, layers=layers),  # type: ignore[arg-type]
        align=AlignParams(),
        distill=DistillParams(steps=0, batch=batch),
        lora=LoraParams(),
    )
    trainer = Trainer(dataset, variant, Seeds(0, 0, 0))
    trainer.prepare()
    return trainer, trainer.start("transfer")


def compare(dataset: Dataset, name: str, timed: bool) -> str:
    """A row: GFLOP of a step by either way, and its milliseconds."""
    samplers, gflop = {}, {}
    for layers in ("online", "cached"):
        trainer, phase = start(dataset, name, layers)
        batches = trainer.batches.read(phase)

        def step(_: Any, trainer: Trainer = trainer, phase: Phase = phase, batches: Any = batches) -> None:
            trainer.update(phase, next(batches))
            phase.step += 1

        step(None)
        gflop[layers] = next(iter(trainer.log.flops.values())) / 1e9
        samplers[layers] = partial(seconds, step)
    cells = [f"{gflop['online']:.1f}", f"{gflop['cached']:.1f}", f"{gflop['cached'] / gflop['online']:.2f}"]
    if timed:
        found = interleave(samplers, Limits(15, 1.0, 10.0))
        ms = {layers: quartiles(samples).median * 1e3 for layers, samples in found.items()}
        cells += [f"{ms['online']:.0f}", f"{ms['cached']:.0f}", f"{ms['online'] / ms['cached']:.2f}×"]
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["bundled", "smollm2"], default="bundled")
    parser.add_argument("--tokens", type=int, default=512, help=f"of a block; {BATCH_TOKENS} a step")
    parser.add_argument("--flops", action="store_true", help="count, and time nothing")
    args = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["ATTNOPT_CHECKPOINTS"] = scratch
        print(f"{environment()['cpu']}, {torch.get_num_threads()} threads, torch {torch.__version__}; {args.shape}\n")
        heads = ["GFLOP online", "cached", "of online", *([] if args.flops else ["ms online", "cached", "faster"])]
        print("| | " + " | ".join(heads) + " |\n|---|" + "---:|" * len(heads))
        dataset = make_dataset(args.shape, args.tokens)
        for name in VARIANTS:
            print(compare(dataset, name, not args.flops), flush=True)


if __name__ == "__main__":
    main()
