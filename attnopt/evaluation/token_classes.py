"""Where quality is lost: predicted tokens by how often they occur, and by what their block held before them."""

from typing import NamedTuple

import numpy as np

from attnopt.records.evaluate import ClassRow
from attnopt.statistics import mean_and_error

NAMES = ("rare", "uncommon", "common", "frequent")
HELD = 1 << 22
"""Tokens of the train split that are looked at at once."""
CONTEXTS = ("pair seen before", "token seen before", "new")


class Classes(NamedTuple):
    """A partition of predicted tokens: `labels` (blocks, T - 1) are indices of `names`."""

    names: tuple[str, ...]
    labels: np.ndarray


def by_frequency(blocks: np.ndarray, train: np.ndarray) -> Classes:
    """How often the predicted token stands in the train split; each class holds about a quarter of that split.

    Args:
        blocks, train: token ids (n, T).
    """
    counts = _counts(train, int(blocks.max()) + 1)
    low, middle, high = (int(_count_below(counts, share)) for share in (0.25, 0.5, 0.75))
    ranges = (
        f"under {low:,} times",
        f"{low:,} to {middle - 1:,} times",
        f"{middle:,} to {high - 1:,} times",
        f"{high:,} times or more",
    )
    names = tuple(f"{name}: {where}" for name, where in zip(NAMES, ranges, strict=True))
    return Classes(names, np.searchsorted((low, middle, high), counts[blocks[:, 1:]], side="right"))


def _counts(train: np.ndarray, least: int) -> np.ndarray:
    """How often each id stands in token ids (n, T), of which a part is held at a time; of `least` ids or more."""
    rows = max(1, HELD // train.shape[1])
    parts = (np.bincount(train[i : i + rows].ravel(), minlength=least) for i in range(0, len(train), rows))
    total = np.zeros(least, dtype=np.int64)
    for part in parts:
        total = np.pad(total, (0, max(0, len(part) - len(total))))
        total[: len(part)] += part
    return total


def _count_below(counts: np.ndarray, share: float) -> float:
    """The quantile, as `np.quantile` defines it, of the count of its id over all tokens, of which none is looked at."""
    values = np.sort(counts)
    ends = values.cumsum()
    below = (at := share * (ends[-1] - 1)) // 1
    low, high = values[np.searchsorted(ends, [below, min(below + 1, ends[-1] - 1)], side="right")].tolist()
    part = at - below
    return low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)


def by_context(blocks: np.ndarray) -> Classes:
    """Whether the predicted token stood earlier in its block (n, T): after the same token as now, elsewhere, or not.

    The first is the associative recall of Arora et al. 2023 (zoology, arXiv:2312.04927).
    """
    labels = np.full((len(blocks), blocks.shape[1] - 1), CONTEXTS.index("new"))
    for row, ids in zip(labels, blocks, strict=True):
        same = np.tril(ids[:, None] == ids, -1)
        row[same[1:].any(1)] = CONTEXTS.index("token seen before")
        row[(same[1:, 1:] & same[:-1, :-1]).any(1)] = CONTEXTS.index("pair seen before")
    return Classes(CONTEXTS, labels)


def classes_of(blocks: np.ndarray, train: np.ndarray) -> dict[str, Classes]:
    """All partitions of the predicted tokens of blocks (n, T), by name."""
    return {"frequency": by_frequency(blocks, train), "context": by_context(blocks)}


def class_rows(tokens: dict[str, np.ndarray], classes: dict[str, Classes]) -> list[ClassRow]:
    """A row for each class that holds a token: its number of tokens, KL with standard error, and both losses.

    Args:
        tokens: each measure of every predicted token (blocks, T - 1), as `per_token` gives them.
        classes: partitions by name.
    """
    found = []
    for by, (names, labels) in classes.items():
        for i, name in enumerate(names):
            if not (chosen := labels == i).any():
                continue
            kl, error = mean_and_error(tokens["kl_forward"], chosen)
            losses = {key: mean_and_error(tokens[key], chosen)[0] for key in ("ce", "teacher_ce")}
            found.append(ClassRow(by=by, label=name, tokens=int(chosen.sum()), kl=kl, kl_se=error, **losses))
    return found
