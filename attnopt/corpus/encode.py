"""Text to token ids on all cores: pieces of documents through the tokenizer's own threads, in order.

A long document is cut where that changes no token, so that neither it nor its encoding is ever held whole.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnopt.corpus.sources import Segment, Source

PIECE, WINDOW = 1 << 18, 1 << 10
"""Characters of a piece of a long document; and on each side of a cut, to see whether it changes a token."""
BATCH, AHEAD = 1 << 20, 2
"""Characters that go to the tokenizer at once, and how many such batches."""


class Encoder:
    """A fast tokenizer's ids of plain text, without padding, truncation or special tokens of its own.

    Attributes:
        dtype: uint16 where it holds every id, else int32. end: the end-of-text token.
    """

    def __init__(self, tokenizer: Any):
        from tokenizers import Tokenizer

        self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.no_padding()
        self.backend.no_truncation()
        self.backend.encode_special_tokens = tokenizer.split_special_tokens
        self.end: int = tokenizer.eos_token_id
        self.dtype: type = np.uint16 if len(tokenizer) <= 2**16 else np.int32

    def __call__(self, texts: list[str]) -> list[Any]:
        """The encoding of each text, computed by the tokenizer's threads."""
        return self.backend.encode_batch_fast(texts, add_special_tokens=False)

    def parts_at(self, text: str, at: int) -> bool:
        """Whether the text around a place has the same ids when it is cut there."""
        around, left, right = self([text[at - WINDOW : at + WINDOW], text[at - WINDOW : at], text[at : at + WINDOW]])
        return around.ids == left.ids + right.ids


@dataclass(frozen=True)
class Piece:
    """A document, or a part of a long one; `ends` with its last."""

    text: str
    ends: bool


def cut_pieces(segments: Iterable[Segment], encoder: Encoder) -> Iterator[Piece]:
    """The documents, those of more than PIECE characters in parts. Where no cut is safe, a document stays whole."""
    held: list[str] = []
    size, wanted = 0, PIECE + WINDOW
    for text, ends in segments:
        held.append(text)
        size += len(text)
        if not ends and size < wanted:
            continue
        whole, start = "".join(held), 0
        while len(whole) - start >= PIECE + WINDOW and (cut := _safe_cut(whole, start, encoder)):
            yield Piece(whole[start:cut], False)
            start = cut
        rest = whole[start:]
        if ends:
            yield Piece(rest, True)
        held, size = ([], 0) if ends else ([rest], len(rest))
        wanted = PIECE + WINDOW if size < PIECE + WINDOW else 2 * size


def _safe_cut(text: str, start: int, encoder: Encoder) -> int:
    """The last place before a space or a line's end, up to PIECE after the start, that changes no token; or 0."""
    end = start + PIECE
    for mark in ("\n", " "):
        for _ in range(8):
            end = text.rfind(mark, start + WINDOW, end)
            if end < 0:
                break
            if not text[end - 1].isspace() and encoder.parts_at(text, end):
                return end
        end = start + PIECE
    return 0


def encode_pieces(
    pieces: Iterable[Piece], encoder: Encoder, room: Callable[[], int | None] = lambda: None
) -> Iterator[tuple[Piece, np.ndarray]]:
    """Every piece with its ids, the end-of-text token included where the document ends, in order; some
    batches are encoded while earlier ones are used.

    Args:
        room: the tokens that are still wanted, None for all; no more characters are read than may be needed for these.
    """
    waiting: deque[tuple[list[Piece], int, Future]] = deque()
    source = iter(pieces)
    exhausted = False
    with ThreadPoolExecutor(AHEAD) as pool:
        while waiting or not exhausted:
            while not exhausted and len(waiting) < AHEAD:
                wanted = _wanted(room(), sum(size for _, size, _ in waiting))
                if not wanted:
                    break
                batch, size = _take(source, wanted)
                exhausted = not batch
                if batch:
                    waiting.append((batch, size, pool.submit(encoder, [piece.text for piece in batch])))
            if not waiting:
                return
            batch, _, future = waiting.popleft()
            for piece, encoding in zip(batch, future.result(), strict=True):
                end = [encoder.end] if piece.ends else []
                yield piece, np.array(encoding.ids + end, dtype=encoder.dtype)


def document_sizes(source: Source, encoder: Encoder) -> Iterator[int]:
    """The tokens of each document, its end-of-text token included, of which none is kept."""
    size = 0
    for shard in range(source.shards):
        for piece, ids in encode_pieces(cut_pieces(source.read(shard), encoder), encoder):
            size += len(ids)
            if piece.ends:
                yield size
                size = 0


def _wanted(room: int | None, waiting: int) -> int:
    """Characters to read next."""
    return BATCH if room is None else max(0, min(BATCH, room - waiting))


def _take(source: Iterator[Piece], wanted: int) -> tuple[list[Piece], int]:
    """Pieces of so many characters and end-of-text tokens, and how many that are."""
    batch: list[Piece] = []
    size = 0
    while size < wanted and (piece := next(source, None)):
        batch.append(piece)
        size += len(piece.text) + 1
    return batch, size
