"""What a split's measures come to: means over tokens with standard errors over blocks, and perplexities per unit."""

import math

import numpy as np

from attnopt.evaluation.token_classes import class_rows, classes_of
from attnopt.records.corpus import SplitCounts
from attnopt.records.evaluate import Quality
from attnopt.statistics import mean_and_error


def summarize(tokens: dict[str, np.ndarray], blocks: np.ndarray, train: np.ndarray, counts: SplitCounts) -> Quality:
    """A split's record.

    Args:
        tokens: each measure of every predicted token (blocks, T - 1), as `per_token` gives them.
        blocks, train: token ids (n, T) of this split and of the train split, for the classes of tokens.
        counts: of the split, whose words and bytes per token turn token perplexity into that of words and bytes.
    """
    mean = {name: float(values.mean(dtype=np.float64)) for name, values in tokens.items()}
    perplexities = {}
    for unit in ("token", "word", "byte"):
        per_unit = 1.0 if unit == "token" else counts.tokens / getattr(counts, f"{unit}s")
        perplexities[f"ppl_{unit}"] = math.exp(mean["ce"] * per_unit)
        perplexities[f"teacher_ppl_{unit}"] = math.exp(mean["teacher_ce"] * per_unit)
    return Quality(
        tokens=tokens["ce"].size,
        blocks=len(tokens["ce"]),
        **mean,
        **perplexities,
        kl_forward_se=mean_and_error(tokens["kl_forward"])[1],
        ppl_ratio=perplexities["ppl_token"] / perplexities["teacher_ppl_token"],
        kl_by_position=[round(float(x), 6) for x in tokens["kl_forward"].mean(0, dtype=np.float64)],
        kl_by_class=class_rows(tokens, classes_of(blocks, train)),
    )
