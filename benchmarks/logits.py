"""What each form of `teacher.logits` costs and gives: hedgehog distilled from each on the bundled teacher.

    python benchmarks/logits.py [--steps 60 --tokens 60000 --threads 2 --out docs/teacher-logits.md]

Works in a temporary folder, through the stages themselves. The table replaces the one between the markers in --out.
"""

import argparse
import importlib
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from attnopt.core.files import read_json, written_aside
from attnopt.core.machine import environment

MODES: dict[str, dict[str, Any]] = {
    "hidden": {"logits": "hidden"},
    "online": {"logits": "online"},
    "dense": {"logits": "dense"},
    "topk, 32": {"logits": "topk", "topk": 32},
    "topk, 8": {"logits": "topk", "topk": 8},
    "sampled, 64 draws": {"logits": "sampled", "draws": 64},
    "sampled, 16 draws": {"logits": "sampled", "draws": 16},
}
TABLE = re.compile(r"(<!-- table -->\n).*(<!-- /table -->\n)", re.DOTALL)


def params(args: argparse.Namespace, teacher: dict[str, Any]) -> dict[str, Any]:
    every = max(1, args.steps // 4)
    return {
        "variants": {"hedgehog": "hedgehog"},
        "seeds": [0],
        "corpus": {"source": "enwiki-sample", "max_tokens": args.tokens, "max_eval_tokens": 6400},
        "teacher": {"source": "bundled", **teacher},
        "distill": {"steps": args.steps, "log_every": every, "valid_every": 10**6, "valid_blocks": 50},
        "hedgehog": {"window": 0},
    }


def stage(name: str, *arguments: str) -> float:
    """Seconds of a stage of the pipeline, in this process and folder."""
    module = importlib.import_module(f"stages.{name}")
    start = time.perf_counter()
    module.run(*arguments)
    return time.perf_counter() - start


def measure(args: argparse.Namespace, mode: str) -> list[str]:
    """A row of the table."""
    YAML(typ="safe").dump(params(args, MODES[mode]), Path("params.yaml"))
    if not Path("data/corpus").exists():
        stage("tokenize")
    seconds = stage("cache_logits")
    stage("distill", "hedgehog")
    found = read_json("results/distill/hedgehog/0/record.json")
    splits = read_json("data/teacher/manifest.json")["splits"]
    size = f"{splits['train']['bytes_per_token']:,.0f}" if "train" in splits else "0"
    return [mode, size, f"{seconds:.1f}", f"{found['tokens_per_s']:,.0f}", f"{found['kl_end']:.4f}"]


def table(rows: list[list[str]], args: argparse.Namespace) -> str:
    about = environment()
    head = ["teacher.logits", "bytes a token", "seconds to cache", "tokens/s in training", "KL on held-out text"]
    lines = ["| " + " | ".join(line) + " |" for line in (head, ["---", *["---:"] * 4], *rows)]
    budget = f"hedgehog without a window, {args.steps} steps, {args.tokens:,} tokens of text"
    return "\n".join([*lines, "", f"{about['cpu']}, {about['threads']} threads, {about['device']}; {budget}."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "teacher-logits.md")
    args = parser.parse_args()
    out = args.out.resolve()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        found = table([measure(args, mode) for mode in MODES], args)
        os.chdir(out.parent)
    print(found)
    text = out.read_text(encoding="utf-8")
    assert TABLE.search(text), f"{out} has no markers for the table"
    with written_aside(out) as aside:
        aside.write_text(TABLE.sub(lambda m: m[1] + found + m[2], text), encoding="utf-8")


if __name__ == "__main__":
    main()
