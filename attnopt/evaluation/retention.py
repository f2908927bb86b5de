"""Recall of a student beside its teacher's, on the same items, teacher-forced; retention where the teacher can.

Items are drawn from the corpus's own test split: copies are its documents' passages, keys and names its words. They are
a function of that split, the tokenizer, `evaluate.recall`, `evaluate.items` and `evaluate.seed`, and each row of the
record carries their digest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attnopt.core.errors import UserError
from attnopt.core.files import sha256
from attnopt.core.progress import progress_bar
from attnopt.corpus.blocks import Documents
from attnopt.evaluation.forced import Forced, Measures, rows_per_pass
from attnopt.evaluation.params import EvaluateParams
from attnopt.evaluation.recall import ENOUGH, Items, copy_items, needle_items, phone_book_items, recall_items, words_of
from attnopt.records.evaluate import TEACHER_CAN, RecallRow, Task
from attnopt.statistics import mean_and_error, wilson
from attnopt.teacher.head import Head

PASSAGE, CUE = 32, 4
"""Tokens of a passage that is copied, and how many of its second copy are given, for a first few may begin many."""


@dataclass(frozen=True)
class Drawn:
    """The items of one test."""

    task: Task
    size: int
    items: Items

    @property
    def digest(self) -> str:
        """sha256 of the items' token ids and of which of them answer which query."""
        return sha256(*(t.numpy().tobytes() for t in (self.items.ids, self.items.answers)))


def draw_items(params: EvaluateParams, documents: Documents, tokenizer: Any, positions: int) -> list[Drawn]:
    """The items of every size of `evaluate.recall`, for a teacher of so many positions.

    Raises: UserError that names the key where the text does not give such items, or one has more tokens than that.
    """
    documents = documents.first(ENOUGH)
    words = words_of(tokenizer.batch_decode(list(documents))) if any(params.recall.values()) else []
    draw = _draws(documents, tokenizer, words, params)
    return [_drawn(task, size, draw[task], positions) for task in draw for size in params.recall.get(task, [])]


def _draws(
    documents: Documents, tokenizer: Any, words: list[str], params: EvaluateParams
) -> dict[Task, Callable[[int], Items]]:
    count, seed = params.items, params.seed
    stream = torch.from_numpy(documents.tokens.astype(np.int64))
    return {
        "copy": lambda gap: copy_items(stream, count, PASSAGE, gap, seed, documents.ends, CUE),
        "pairs": lambda n: recall_items(tokenizer, words, n, count, seed),
        "phone_book": lambda n: phone_book_items(tokenizer, words, n, count, seed),
        "needle": lambda length: needle_items(tokenizer, words, length, count, seed),
    }


def _drawn(task: Task, size: int, draw: Callable[[int], Items], positions: int) -> Drawn:
    try:
        items = draw(size)
    except ValueError as error:
        raise UserError(f"evaluate.recall.{task}: {size} is not possible: {error}") from None
    if (longest := items.ids.shape[1]) > positions:
        raise UserError(f"evaluate.recall.{task}: {size} makes {longest} tokens, the teacher has {positions} positions")
    return Drawn(task, size, items)


class Recall:
    """What the teacher answers to all items, against which students are held."""

    def __init__(self, teacher: Any, head: Head, drawn: list[Drawn], params: EvaluateParams, block: int):
        self.tests = []
        for test in drawn:
            ids, asked = test.items.ids, test.items.answers >= 0
            rows = rows_per_pass(params.batch, block, ids.shape[1])
            self.tests.append((test, Forced(teacher, head, ids, asked, rows)))

    def of(self, student: Any, head: Head, name: str) -> list[RecallRow]:
        """A student's rows; `name` is for the progress."""
        shown = progress_bar(self.tests, name=f"{name} recall", unit="test") if self.tests else []
        return [recall_row(test, forced.measure(student, head)) for test, forced in shown]


def recall_row(test: Drawn, measures: Measures) -> RecallRow:
    """The record of one test.

    Args:
        measures: of every token of the answers, in the order of the items, as `Forced.measure` gives them.
    """
    items = test.items
    queries = queries_of(items)
    right, teacher_right = (queries.all_of(measures[key]) for key in ("right", "teacher_right"))
    kl, error = mean_and_error(*queries.by_item(measures["kl_forward"]))
    return RecallRow(
        task=test.task,
        size=test.size,
        items=len(items.ids),
        queries=len(right),
        tokens=items.ids.shape[1],
        **retained(right, teacher_right, queries.item),
        kl_answer=kl,
        kl_answer_se=error,
        nll=float(measures["ce"].mean(dtype=np.float64)),
        teacher_nll=float(measures["teacher_ce"].mean(dtype=np.float64)),
        digest=test.digest,
    )


@dataclass(frozen=True)
class Queries:
    """Which query each token of the answers belongs to.

    Attributes:
        query: (tokens,) numbered through all items. item: (queries,) the item of each.
    """

    query: np.ndarray
    item: np.ndarray

    def all_of(self, right: np.ndarray) -> np.ndarray:
        """(queries,) whether all tokens of a query are right, (tokens,)."""
        return np.bincount(self.query, weights=~right, minlength=len(self.item)) == 0

    def by_item(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (tokens,) as rows of items, and where a row has one: what `mean_and_error` takes."""
        item = self.item[self.query]
        found = np.where(item == np.arange(item.max() + 1)[:, None], values, 0)
        return found, item == np.arange(item.max() + 1)[:, None]


def queries_of(items: Items) -> Queries:
    """The queries of all items, in the order in which their tokens stand."""
    asked = items.answers >= 0
    rows, answers = asked.nonzero()[:, 0].numpy(), items.answers[asked].numpy()
    pairs, query = np.unique(np.stack([rows, answers], 1), axis=0, return_inverse=True)
    return Queries(query.ravel(), pairs[:, 0])


def retained(right: np.ndarray, teacher_right: np.ndarray, item: np.ndarray) -> dict[str, Any]:
    """Accuracy of student and teacher, and the first over the second where the teacher reaches `TEACHER_CAN`.

    The interval is Wilson's of the student's accuracy, over the teacher's. Queries of one item are not independent:
    their number is divided by the design effect, the variance of the mean over items relative to that of independent
    queries (Kish 1965), where that is above 1.

    Args:
        right, teacher_right: (queries,) whether they were answered. item: (queries,) the item of each.
    """
    accuracy, bar = float(right.mean()), float(teacher_right.mean())
    found: dict[str, Any] = {"accuracy": accuracy, "teacher_accuracy": bar}
    if bar < TEACHER_CAN:
        return found | {"retention": None, "retention_low": None, "retention_high": None}
    low, high = wilson(accuracy, len(right) / design_effect(right, item))
    return found | {"retention": accuracy / bar, "retention_low": low / bar, "retention_high": high / bar}


def design_effect(right: np.ndarray, item: np.ndarray) -> float:
    """How many times the variance of independent queries the mean's is, 1 at least."""
    rows = item == np.unique(item)[:, None]
    mean, error = mean_and_error(np.where(rows, right, 0), rows)
    independent = mean * (1 - mean) / max(1, len(right) - 1)
    return max(1.0, error**2 / independent) if error is not None and independent else 1.0
