"""The search behind the defaults: variants trained with other settings, compared on the validation split alone.

    python benchmarks/sweep.py "performer features=256 transfer.lr=0.006" "based transfer.steps=320"
    python benchmarks/sweep.py --show            # docs/sweep.csv as a table

Run in the project's folder after `dvc repro cache-logits`. A setting is a key of the variant's section. Every training
adds a line to docs/sweep.csv as soon as it has ended; one that stands there already is not run again.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML
from tqdm import tqdm

from attnopt import settings as params
from attnopt.core.device import resolve_device
from attnopt.targets.dataset import load_dataset
from attnopt.training.trainer import Trainer

OUT = Path("docs/sweep.csv")
COLUMNS = ["variant", "settings", "tokens", "fit", "transfer", "align", "distill", "lora", "seconds"]
"""fit and the phases: validation KL after each, in nats per token."""


def settings_of(variant: str, changes: list[str]) -> params.Settings:
    """params.yaml with changes to a variant's section. Raises UserError as `params.load` does."""
    yaml = YAML(typ="safe")
    content: Any = yaml.load(Path("params.yaml").read_text(encoding="utf-8"))
    section = content[variant] = content[variant] or {}
    for change in changes:
        keys, value = change.split("=", 1)
        *path, last = keys.split(".")
        node = section
        for key in path:
            node = node.setdefault(key, {})
        node[last] = yaml.load(value)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        YAML(typ="safe").dump(content, file)
        file.flush()
        return params.load_settings(file.name)


def train(variant: str, changes: list[str], seed: int) -> dict[str, Any]:
    settings = settings_of(variant, changes)
    loaded, _ = load_dataset(settings.teacher)
    chosen = settings.variant(variant)
    loaded.teacher.to(resolve_device(chosen.distill.device))
    trainer = Trainer(loaded, chosen, chosen.runs()[seed])
    trainer.run()
    record = trainer.record(key="")
    ends = {phase.phase: phase.kl_end for phase in record.phases}
    row = {"variant": variant, "settings": " ".join(changes), "tokens": record.budget.tokens}
    return row | {"fit": round(record.kl_start, 6), **ends, "seconds": record.seconds}


def table(rows: pd.DataFrame) -> str:
    """Markdown, the best of each variant first."""
    final = rows[["fit", "transfer", "align", "distill", "lora"]].ffill(axis=1)["lora"]
    rows = rows.assign(final=final).sort_values(["variant", "final"]).drop(columns="seconds")
    lines = ["| " + " | ".join(rows.columns) + " |", "|---|---|" + "---:|" * (len(rows.columns) - 2)]
    for row in rows.itertuples(index=False):
        cells = ["" if value != value else f"{value:.4f}" if isinstance(value, float) else str(value) for value in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainings", nargs="*", metavar="'VARIANT KEY=VALUE ...'")
    parser.add_argument("--show", action="store_true", help="train nothing")
    args = parser.parse_args()
    done = pd.read_csv(OUT, keep_default_na=False, na_values={c: [""] for c in COLUMNS[2:]}) if OUT.exists() else None
    known = set() if done is None else set(zip(done["variant"], done["settings"], strict=True))
    for training in tqdm(args.trainings, unit="training", disable=args.show):
        variant, *changes = training.split()
        if (variant, " ".join(changes)) not in known:
            row = pd.DataFrame([train(variant, changes, 0)], columns=COLUMNS)
            row.to_csv(OUT, mode="a", index=False, header=not OUT.exists())
    if OUT.exists():
        print(table(pd.read_csv(OUT, keep_default_na=False, na_values={c: [""] for c in COLUMNS[2:]})))


if __name__ == "__main__":
    main()
