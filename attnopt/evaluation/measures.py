"""How far a student is from its teacher: dense, both directions, on held-out text."""

import math
from typing import Any

import numpy as np

from attnopt.statistics import mean_and_error


def summarize(tokens: dict[str, np.ndarray], split: dict[str, int]) -> dict[str, Any]:
    """Means over tokens, standard errors over blocks, perplexities per token, word and byte, KL by position.

    Args:
        tokens: what `per_token` returned.
        split: the split's manifest entry, whose words and bytes per token turn token into word and byte perplexity.
    """
    mean = {name: float(values.mean(dtype=np.float64)) for name, values in tokens.items()}
    _, se = mean_and_error(tokens["kl_forward"])
    result: dict[str, Any] = {"tokens": tokens["ce"].size, "blocks": len(tokens["ce"]), **mean, "kl_forward_se": se}
    for unit in ("token", "word", "byte"):
        per_unit = 1.0 if unit == "token" else split["tokens"] / split[f"{unit}s"]
        result[f"ppl_{unit}"] = math.exp(mean["ce"] * per_unit)
        result[f"teacher_ppl_{unit}"] = math.exp(mean["teacher_ce"] * per_unit)
    result["ppl_ratio"] = result["ppl_token"] / result["teacher_ppl_token"]
    result["kl_by_position"] = [round(float(x), 6) for x in tokens["kl_forward"].mean(0, dtype=np.float64)]
    return result
