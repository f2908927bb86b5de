"""What each part of training for length buys: KL to the teacher by position, in valid documents of 1024 tokens.

    python benchmarks/lengths.py hedgehog_window based            # every row below, for these variants
    python benchmarks/lengths.py window --rows "512" "512, shifted"
    python benchmarks/lengths.py --show                           # docs/lengths.csv as a table

Run in the project's folder; data/ and models/ are left alone, each row has a corpus and a cache of its own in a
temporary folder. All rows see the same number of tokens in as many steps. Every training adds a line to
docs/lengths.csv as soon as it has ended; one that stands there already is not run again.
"""

import argparse
import contextlib
import copy
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ruamel.yaml import YAML
from tqdm import tqdm

from attnopt import settings as params
from attnopt.cli import run_stage
from attnopt.core.device import resolve_device
from attnopt.corpus.params import CorpusParams
from attnopt.corpus.sources import documents, open_sources
from attnopt.student.distance import per_token
from attnopt.targets.dataset import load_dataset
from attnopt.teacher.head import hidden_states
from attnopt.training.trainer import Trainer

OUT = Path("docs/lengths.csv")
LENGTH, TOKENS = 1024, 1024
"""Of the documents' parts that are measured on, and of a training step."""
EDGES = [0, 64, 128, 256, 512, 1024]
BINS = [f"{start}-{stop}" for start, stop in itertools.pairwise(EDGES)]
COLUMNS = ["variant", "trained on", "tokens", *BINS, "last ±", "seconds"]
"""Forward KL by position, nats per token; the last bin's standard error over the measured parts."""
LONG = {"corpus": {"long_block": 1024, "long_across": True}, "distill": {"long_share": 0.2}}
SHIFTED = {"teacher": {"shift": 0.5}}
ROWS: dict[str, tuple[int, list[dict[str, Any]]]] = {
    "128": (128, []),
    "128, shifted": (128, [SHIFTED]),
    "512": (512, []),
    "512, last fifth 1024": (512, [LONG]),
    "512, shifted": (512, [SHIFTED]),
    "512, shifted, last fifth 1024": (512, [SHIFTED, LONG]),
    "1024": (1024, []),
}
"""By name: tokens of a block, and changes to sections of params.yaml."""


def content_of(row: str, original: dict[str, Any]) -> dict[str, Any]:
    """params.yaml of a row, with its relative paths made absolute."""
    block, changes = ROWS[row]
    content = copy.deepcopy(original)
    plain = {
        "corpus": {"block": block, "long_block": None},
        "teacher": {"shift": 0.0},
        "distill": {"batch": TOKENS // block, "keep": [], "long_share": 0.0},
    }
    for change in (plain, *changes):
        for section, keys in change.items():
            content[section] = (content.get(section) or {}) | keys
    for section in ("corpus", "teacher"):
        if path := (content.get(section) or {}).get("path"):
            content[section]["path"] = str(Path(path).resolve()) if Path(path).exists() else path
    return content


@contextlib.contextmanager
def workspace(content: dict[str, Any]) -> Iterator[params.Settings]:
    """A temporary folder as working directory, with its own params.yaml, data/corpus and data/teacher."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        with Path("params.yaml").open("w", encoding="utf-8") as file:
            YAML(typ="safe").dump(content, file)
        run_stage("tokenize")
        run_stage("cache_logits")
        yield params.load_settings()


def valid_parts(corpus: CorpusParams, tokenizer: Any, most: int) -> np.ndarray:
    """(n, LENGTH) contiguous tokens of the valid split's documents, each within one document."""
    encoded = tokenizer(list(documents(open_sources(corpus)["valid"])), add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    parts = [ids[i : i + LENGTH] for ids in encoded for i in range(0, len(ids) - LENGTH + 1, LENGTH)]
    if not parts:
        raise SystemExit(f"the valid split has no document of {LENGTH} tokens")
    return np.array(parts)[np.unique(np.linspace(0, len(parts) - 1, most).astype(int))]


def train(variant: str, row: str, settings: params.Settings, parts: int) -> dict[str, Any]:
    """One training and what it gives at every position."""
    dataset, tokenizer = load_dataset(settings.teacher)
    chosen = settings.variant(variant)
    dataset.teacher.to(resolve_device(chosen.distill.device))
    trainer = Trainer(dataset, chosen, chosen.runs()[0])
    trainer.run()
    blocks = valid_parts(settings.corpus, tokenizer, parts)
    theirs = lambda _, ids: hidden_states(dataset.teacher, ids)  # noqa: E731
    kl = per_token(trainer.student, trainer.head, theirs, trainer.teacher_head, blocks, batch=2)["kl_forward"]
    binned = [kl[:, start:stop].mean(1) for start, stop in itertools.pairwise(EDGES)]
    record = trainer.record(key="")
    found = {"variant": variant, "trained on": row, "tokens": record.budget.tokens, "seconds": record.seconds}
    error = binned[-1].std(ddof=1) / len(blocks) ** 0.5 if len(blocks) > 1 else float("nan")
    means = {name: round(float(b.mean()), 5) for name, b in zip(BINS, binned, strict=True)}
    return found | means | {"last ±": round(float(error), 5)}


def table(rows: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(rows.columns) + " |", "|---|---|" + "---:|" * (len(rows.columns) - 2)]
    for row in rows.sort_values("variant", kind="stable").itertuples(index=False):
        cells = [f"{value:.4f}" if isinstance(value, float) else str(value) for value in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--parts", type=int, default=24, help=f"parts of {LENGTH} tokens to measure on")
    parser.add_argument("--show", action="store_true", help="train nothing")
    args = parser.parse_args()
    out, original = OUT.resolve(), YAML(typ="safe").load(Path("params.yaml").read_text(encoding="utf-8"))
    os.environ.setdefault("ATTNOPT_CHECKPOINTS", str(Path(".checkpoints").resolve()))
    done = pd.read_csv(out) if out.exists() else pd.DataFrame(columns=COLUMNS)
    known = set(zip(done["variant"], done["trained on"].astype(str), strict=True))
    for row in args.rows if not args.show else []:
        wanted = [variant for variant in args.variants if (variant, row) not in known]
        if not wanted:
            continue
        with workspace(content_of(row, original)) as settings:
            for variant in tqdm(wanted, desc=row, unit="training"):
                found = pd.DataFrame([train(variant, row, settings, args.parts)], columns=COLUMNS)
                found.to_csv(out, mode="a", index=False, header=not out.exists())
    if out.exists():
        print(table(pd.read_csv(out)))


if __name__ == "__main__":
    main()
