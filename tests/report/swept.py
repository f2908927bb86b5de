"""Synthetic records of one point of a sweep."""

import math
from pathlib import Path

from attnopt.records.evaluate import EvaluateRecord

from . import fake


def write(root: Path, features: int, kl: float) -> Path:
    """A project folder of one point of a sweep: Performers of so many features, at a KL of their own."""
    fake.write(root, ["softmax", "masks", "performer", "performer_bidirectional"], [0])
    with (root / "params.yaml").open("a") as settings:
        settings.write(f"performer:\n  features: {features}\n")
    path = root / "results/evaluate/performer/0/record.json"
    record = EvaluateRecord.read(path)
    planted = {"kl_forward": kl, "kl_forward_se": 0.02, "ppl_ratio": math.exp(kl)}
    splits = {name: split.model_copy(update=planted) for name, split in record.splits.items()}
    lengths = [at.model_copy(update=planted) for at in record.lengths]
    record.model_copy(update={"splits": splits, "lengths": lengths}).write(path)
    return root
