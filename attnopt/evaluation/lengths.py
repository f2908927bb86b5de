"""Quality at length: contiguous pieces of single documents, by position and by distance to what is to be recalled.

Positions are those of the predicted token, counted from 0 at the piece's start; nothing predicts the first one. The gap
of a predicted token is the distance to the last occurrence, in the same piece, of it after the token before it: what an
induction head would look up (cf. Arora et al. 2023, arXiv:2312.04927).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, takewhile
from typing import Any

import numpy as np
import torch

from attnopt.core.errors import UserError
from attnopt.core.progress import progress_bar
from attnopt.corpus.blocks import Documents
from attnopt.evaluation.forced import Forced, Measures, rows_per_pass
from attnopt.evaluation.params import EvaluateParams
from attnopt.records.base import Row
from attnopt.records.evaluate import GapRow, LengthQuality, PositionBin
from attnopt.statistics import mean_and_error, student_t
from attnopt.teacher.head import Head

FIRST_BIN, FIRST_GAP = 64, 16
"""Where the first bins end, of positions and of gaps."""
HOLDS, EXACT = 2.0, 1e-4
"""`holds_to`: how many times the first bin's KL is still the same; nats under which a KL counts as this much."""


@dataclass(frozen=True)
class Pieces:
    """ids: (n, length) contiguous tokens, each piece of one document; document: (n,) which one."""

    ids: np.ndarray
    document: np.ndarray


def cut_pieces(documents: Documents, length: int, most: int) -> Pieces:
    """Pieces that do not overlap: the first of every document, then the second, up to `most`.

    Where there are more documents that are long enough, they are taken evenly.

    Raises: UserError where none is that long.
    """
    slots = documents.sizes // length
    if not slots.max(initial=0):
        longest = documents.sizes.max(initial=0)
        raise UserError(
            f"evaluate.lengths: no document of the test split has {length} tokens, the longest has {longest}; "
            "whole documents are needed, as they are never packed"
        )
    chosen: list[tuple[int, int]] = []
    for slot in range(slots.max()):
        having = np.flatnonzero(slots > slot)
        if len(having) > (room := most - len(chosen)):
            having = having[np.linspace(0, len(having) - 1, room).astype(int)]
        chosen += [(document, slot) for document in having.tolist()]
    chosen.sort()
    ids = [documents[document][slot * length : (slot + 1) * length] for document, slot in chosen]
    return Pieces(np.stack(ids).astype(np.int64), np.array([document for document, _ in chosen]))


def check_lengths(params: EvaluateParams, documents: Documents, positions: int) -> list[Pieces]:
    """The pieces of every length of `evaluate.lengths`, for a teacher of so many positions.

    Raises: UserError where a length exceeds the teacher's positions, or every document.
    """
    for length in params.lengths:
        if length > positions:
            raise UserError(f"evaluate.lengths: {length} exceeds the teacher's {positions} positions")
    return [cut_pieces(documents, length, params.documents) for length in params.lengths]


class AtLength:
    """What the teacher says of pieces of one length, against which students are held."""

    def __init__(self, teacher: Any, head: Head, pieces: Pieces, params: EvaluateParams, block: int):
        self.pieces, self.length = pieces, pieces.ids.shape[1]
        ids = torch.from_numpy(pieces.ids)
        asked = torch.ones_like(ids, dtype=torch.bool)
        asked[:, 0] = False
        self.forced = Forced(teacher, head, ids, asked, rows_per_pass(params.batch, block, self.length))
        self.gaps = pair_gaps(pieces.ids)

    def of(self, student: Any, head: Head, name: str) -> LengthQuality:
        """A student's row; `name` is for the progress."""
        show = partial(progress_bar, name=f"{name} at {self.length}", unit="batch")
        return summarize_length(self.forced.measure(student, head, show), self.pieces, self.gaps)


def summarize_length(measures: Measures, pieces: Pieces, gaps: np.ndarray) -> LengthQuality:
    """The record of one length.

    Args:
        measures: of every predicted token, (n (T - 1),) each, as `Forced.measure` gives them.
        gaps: of the same tokens, (n, T - 1), as `pair_gaps` gives them.
    """
    length = pieces.ids.shape[1]
    tokens = {name: values.reshape(gaps.shape) for name, values in measures.items()}
    position = np.broadcast_to(np.arange(1, length), gaps.shape)
    bins = [
        PositionBin(
            start=start, stop=stop, **_columns(PositionBin, tokens, pieces, (position >= start) & (position < stop))
        )
        for start, stop in bounds_of(length)
    ]
    far = {bounds: (gaps >= bounds[0]) & (gaps < (bounds[1] or length)) for bounds in gap_bounds(length)}
    rows = [
        GapRow(low=low, high=high, **_columns(GapRow, tokens, pieces, chosen))
        for (low, high), chosen in [((0, None), gaps == 0), *far.items()]
        if chosen.any()
    ]
    whole = _columns(LengthQuality, tokens, pieces, gaps >= 0) | {"blocks": len(pieces.ids)}
    return LengthQuality(length=length, positions=bins, gaps=rows, holds_to=holds_to(bins), **whole)


def _columns(row: type[Row], tokens: Measures, pieces: Pieces, chosen: np.ndarray) -> dict[str, Any]:
    """What a row of this type says of the predicted tokens `chosen` (n, T - 1); errors are over documents."""
    select, more = _by_document(chosen, pieces), tokens["ce"] - tokens["teacher_ce"]
    found: dict[str, Any] = {"tokens": int(chosen.sum()), "blocks": len(select)}
    for name in ("kl_forward", "top1_agreement", "ce", "teacher_ce"):
        found[name], found[f"{name}_se"] = mean_and_error(_by_document(tokens[name], pieces), select)
    mean, error = mean_and_error(_by_document(more, pieces), select)
    half = None if error is None else float(student_t(len(select) - 1)) * error
    found["ppl_ratio"] = _ratio(mean)
    found["ppl_ratio_low"], found["ppl_ratio_high"] = (
        None if half is None else _ratio(mean + side * half) for side in (-1, 1)
    )
    return {name: value for name, value in found.items() if name in row.model_fields}


def _ratio(nats: float) -> float:
    return math.exp(min(nats, 50.0))


def _by_document(values: np.ndarray, pieces: Pieces) -> np.ndarray:
    """(documents, most pieces of one, T - 1) flattened to two dimensions; zeros where a document has fewer pieces."""
    _, row, counts = np.unique(pieces.document, return_inverse=True, return_counts=True)
    place = np.concatenate([np.arange(count) for count in counts])
    found = np.zeros((len(counts), counts.max(), values.shape[1]), values.dtype)
    found[row, place] = values
    return found.reshape(len(counts), -1)


def bounds_of(length: int) -> list[tuple[int, int]]:
    """0 to 64, 64 to 128, and so on in powers of two; the last one ends at the length."""
    return _doubling(0, FIRST_BIN, length)


def gap_bounds(length: int) -> list[tuple[int, int | None]]:
    """1 to 16, 16 to 32, and so on in powers of two; the last one has no end."""
    bounds = _doubling(1, FIRST_GAP, length)
    return [*bounds[:-1], (bounds[-1][0], None)]


def _doubling(start: int, first: int, stop: int) -> list[tuple[int, int]]:
    inner = [first << i for i in range(stop.bit_length()) if first << i < stop]
    return [*pairwise([start, *inner, stop])]


def pair_gaps(ids: np.ndarray) -> np.ndarray:
    """(n, T - 1) how many tokens back the pair (token before, token) of each predicted token of ids (n, T) last stood
    in its row, 0 where it stands there for the first time."""
    pairs = ids[:, :-1] * (ids.max() + 1) + ids[:, 1:]
    order = pairs.argsort(1, kind="stable")
    sorted_pairs = np.take_along_axis(pairs, order, 1)
    gaps = np.zeros_like(pairs)
    back = np.where(sorted_pairs[:, 1:] == sorted_pairs[:, :-1], np.diff(order, axis=1), 0)
    np.put_along_axis(gaps, order[:, 1:], back, 1)
    return gaps


def holds_to(bins: Sequence[PositionBin]) -> int | None:
    """The end of the last bin up to which every KL stays within twice the first's; None where only that one does."""
    most = HOLDS * max(bins[0].kl_forward, EXACT)
    held = [*takewhile(lambda b: b.kl_forward <= most, bins)]
    return held[-1].stop if len(held) > 1 else None
