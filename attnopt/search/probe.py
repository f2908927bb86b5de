"""What mixes are scored by: KL to the teacher on long pieces of held-out text, and on values recalled from lists."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attnopt.core.errors import UserError
from attnopt.corpus.blocks import Documents
from attnopt.evaluation.forced import Forced
from attnopt.evaluation.lengths import cut_pieces
from attnopt.evaluation.recall import ENOUGH, Items, recall_items, words_of
from attnopt.evaluation.retention import queries_of
from attnopt.search.params import SearchParams
from attnopt.teacher.head import Head


@dataclass(frozen=True)
class Measured:
    """Nats per token.

    Attributes:
        pieces: (n,) the KL on each piece of text. lists: (m,) on the recalled values of each list.
    """

    pieces: np.ndarray
    lists: np.ndarray

    @property
    def kl(self) -> float:
        return float(self.pieces.mean())

    @property
    def recall(self) -> float:
        return float(self.lists.mean())

    def total(self, recall_weight: float) -> float:
        """What the search minimises."""
        return self.kl + recall_weight * self.recall


class Probe:
    """What the teacher says of some texts, against which mixes are held.

    Args:
        ids: (n, T) pieces of text. items: the lists.
    """

    def __init__(self, teacher: Any, head: Head, ids: np.ndarray, items: Items, params: SearchParams):
        texts = torch.from_numpy(ids)
        asked = torch.zeros_like(texts, dtype=torch.bool)
        asked[:, params.every :: params.every] = True
        self.head, self.queries, self.count = head, queries_of(items), len(ids)
        self.text = Forced(teacher, head, texts, asked, params.batch)
        rows = max(1, params.batch * ids.shape[1] // items.ids.shape[1])
        self.recall = Forced(teacher, head, items.ids, items.answers >= 0, rows)

    def of(self, model: Any) -> Measured:
        """A model that has the teacher's head."""
        pieces = self.text.measure(model, self.head)["kl_forward"].reshape(self.count, -1).mean(1, dtype=np.float64)
        values, chosen = self.queries.by_item(self.recall.measure(model, self.head)["kl_forward"])
        return Measured(pieces, values.sum(1, dtype=np.float64) / chosen.sum(1))


def draw_probe(
    teacher: Any, head: Head, tokenizer: Any, documents: Documents, params: SearchParams, pieces: int, lists: int
) -> Probe:
    """A probe of so many pieces of a split's documents, each of a single one, and of lists of its words.

    Raises: UserError that names the key where the teacher or the text has not what it asks for.
    """
    positions = teacher.config.max_position_embeddings
    if params.length > positions:
        raise UserError(f"search.length: {params.length} exceeds the teacher's {positions} positions")
    if documents.sizes.max(initial=0) < params.length:
        longest = documents.sizes.max(initial=0)
        raise UserError(f"search.length: no held-out document has {params.length} tokens, the longest has {longest}")
    words = words_of(tokenizer.batch_decode(list(documents.first(ENOUGH))))
    try:
        items = recall_items(tokenizer, words, params.pairs, lists, params.seed)
    except ValueError as error:
        raise UserError(f"search.pairs: {params.pairs} are not possible: {error}") from None
    if (longest := items.ids.shape[1]) > positions:
        raise UserError(f"search.pairs: {params.pairs} make {longest} tokens, the teacher has {positions} positions")
    return Probe(teacher, head, cut_pieces(documents, params.length, pieces).ids, items, params)
