"""data/corpus, written as it is read: token ids to growing files, then blocks cut from these.

The ids, ends and counts so far are a checkpoint: what was killed goes on behind the last piece that it kept, once the
text before it has been read again and is still the same.
"""

import hashlib
import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from attnopt.core.checkpoint import Checkpoint, checkpoint_key
from attnopt.core.code import code_digest
from attnopt.core.errors import UserError
from attnopt.core.files import read_json, sha256, write_json, written_aside
from attnopt.core.progress import progress_bar
from attnopt.corpus import wikipedia as wiki
from attnopt.corpus.blocks import LONG, files_of
from attnopt.corpus.encode import Encoder, Piece, cut_pieces, encode_pieces
from attnopt.corpus.params import CorpusParams
from attnopt.corpus.sources import SPLITS, Source, open_sources
from attnopt.corpus.store import GrowingArray, gather
from attnopt.records.corpus import CorpusManifest, SplitCounts

KEPT_EVERY = 1 << 24
"""Bytes of text between two checkpoints."""


@dataclass
class Reached:
    """How far a split has been read.

    Attributes:
        shard, pieces: of the source, and those of this shard that are written. before, digest: of the text up to the
        shard's start and up to here. done: whether the split is whole.
    """

    shard: int = 0
    pieces: int = 0
    before: str = ""
    digest: str = ""
    documents: int = 0
    words: int = 0
    bytes: int = 0
    tokens: int = 0
    done: bool = False

    def count(self, piece: Piece, tokens: int) -> None:
        """Words are counted as WikiText does, line ends included."""
        self.pieces += 1
        self.tokens += tokens
        self.words += len(piece.text.split()) + piece.text.count("\n")
        text = piece.text.encode()
        self.bytes += len(text)
        self.digest = _chained(self.digest, text, piece.ends)


def _chained(digest: str, text: bytes, ends: bool) -> str:
    chained = hashlib.sha256(f"{digest}{int(ends)}".encode())
    chained.update(text)
    return chained.hexdigest()


def write_corpus(
    params: CorpusParams, tokenizer: Any, out: Path, sample: Callable[[int], np.ndarray] | None = None
) -> CorpusManifest:
    """Tokenise the whole corpus into the folder `out`: blocks, documents and manifest.json, which is returned.

    Args:
        sample: gives so many blocks of the teacher's own text; needed for source teacher, and for no other.
    Raises: UserError where a split does not fill one block.
    """
    sources, encoder = open_sources(params), Encoder(tokenizer)
    digest = sha256(tokenizer.backend_tokenizer.to_str())
    checkpoint = Checkpoint(checkpoint_key(params, digest, len(tokenizer), code_digest(__name__)))
    with checkpoint.locked():
        work = checkpoint.folder / "corpus"
        work.mkdir(exist_ok=True)
        digests: list[str] = []
        splits: dict[str, SplitCounts] = {}
        for split in SPLITS:
            if split == "train" and sample:
                counts, text = _write_sampled(params, tokenizer, encoder, work, sample)
            else:
                reached = write_split(sources[split], encoder, work, split, _room(params, split))
                counts, text = _write_blocks(params, work, split, reached), reached.digest
            splits[split] = counts
            digests.append(text)
        manifest = CorpusManifest(
            source=params.source,
            name=params.id or params.path or wiki.SAMPLE,
            sha256=sha256(*digests),
            tokenizer=digest,
            vocabulary=len(tokenizer),
            block=params.block,
            long_block=params.long_block,
            long_blocks=_write_long(params, work) if params.long_block else 0,
            splits=splits,
        )
        manifest.write(work / "manifest.json")
        for state in work.glob("*.state.json"):
            state.unlink()
        with written_aside(out) as aside:
            shutil.move(work, aside)
        checkpoint.remove()
    return manifest


def _room(params: CorpusParams, split: str) -> int | None:
    """The tokens after which a split is read no further."""
    return params.max_tokens if split == "train" and params.stops else None


class SplitWriter:
    """A split's tokens and where its documents end, appended to its files and kept every so often.

    Args:
        room: the tokens after which nothing more is read; the last document then ends there.
    """

    def __init__(self, folder: Path, split: str, reached: Reached, dtype: type, room: int | None):
        self.reached, self.room, self.state = reached, room, folder / f"{split}.state.json"
        _, tokens, ends = files_of(folder, split)
        self.tokens = GrowingArray(tokens, dtype, rows=reached.tokens)
        self.ends = GrowingArray(ends, np.int64, rows=reached.documents)
        self.kept = reached.bytes

    def left(self) -> int | None:
        """Tokens that are still wanted; None: all there are."""
        return None if self.room is None else self.room - self.reached.tokens

    def write_shard(self, source: Source, shard: int, encoder: Encoder, bar: Any) -> None:
        """Write what is left of a shard, or as much of it as there is room for."""
        reached = self.reached
        if shard > reached.shard:
            reached.shard, reached.pieces, reached.before = shard, 0, reached.digest
        pieces = cut_pieces(source.read(shard), encoder)
        written = islice(pieces, reached.pieces, None)
        for piece, ids in encode_pieces(written, encoder, self.left):
            size, tokens = reached.bytes, reached.tokens
            self._append(piece, ids)
            bar.update(reached.tokens - tokens if self.room else reached.bytes - size)
            if self.left() == 0:
                return
            if reached.bytes - self.kept >= KEPT_EVERY:
                self.keep()

    def _append(self, piece: Piece, ids: np.ndarray) -> None:
        ids = ids[: self.left()]
        self.tokens.append(ids)
        self.reached.count(piece, len(ids))
        if piece.ends or self.left() == 0:
            self.reached.documents += 1
            self.ends.append(np.array([self.reached.tokens]))

    def keep(self) -> None:
        """What an interruption does not cost."""
        self.tokens.flush()
        self.ends.flush()
        write_json(self.state, asdict(self.reached))
        self.kept = self.reached.bytes

    def close(self) -> None:
        self.tokens.file.close()
        self.ends.file.close()


def write_split(source: Source, encoder: Encoder, folder: Path, split: str, room: int | None = None) -> Reached:
    """Write a split's tokens and where its documents end, going on where an earlier call was stopped.

    Args:
        room: the tokens after which nothing more is read; None: read all.
    """
    reached = _resumable(folder / f"{split}.state.json", source, encoder, room)
    if reached.done:
        return reached
    total, unit = (room, " tokens") if room else (source.bytes, "B")
    writer = SplitWriter(folder, split, reached, encoder.dtype, room)
    with closing(writer), progress_bar(name=f"tokenize {split}", unit=unit, total=total) as bar:
        bar.unit_scale = True
        bar.update(reached.tokens if room else reached.bytes)
        for shard in range(reached.shard, source.shards):
            if writer.left() != 0:
                writer.write_shard(source, shard, encoder, bar)
        reached.done = True
        writer.keep()
    return reached


def _resumable(state: Path, source: Source, encoder: Encoder, room: int | None) -> Reached:
    """What an earlier call kept, where the text that it read is still the same; else a start from nothing."""
    if not state.is_file():
        return Reached()
    reached = Reached(**read_json(state))
    digest = reached.before
    pieces = cut_pieces(source.read(reached.shard), encoder) if reached.shard < source.shards else iter(())
    for _, piece in zip(range(reached.pieces), pieces, strict=False):
        digest = _chained(digest, piece.text.encode(), piece.ends)
    more = reached.done and reached.tokens != room and next(pieces, None)
    if digest != reached.digest or more:
        print(f"  {state.name.split('.')[0]}: the text has changed since; starting anew", file=sys.stderr)
        return Reached()
    return reached


def _write_blocks(params: CorpusParams, folder: Path, split: str, reached: Reached) -> SplitCounts:
    """The split's blocks; raises UserError where it does not fill one."""
    limit = params.max_tokens if split == "train" else params.max_eval_tokens
    starts = thinned(np.arange(reached.tokens // params.block) * params.block, params.block, limit)
    if not len(starts):
        raise UserError(
            f"corpus: the {split} split has {reached.tokens} tokens, fewer than one block of {params.block}"
        )
    blocks, tokens, _ = files_of(folder, split)
    gather(tokens, blocks, starts, params.block)
    counts = {name: getattr(reached, name) for name in ("documents", "words", "bytes", "tokens")}
    return SplitCounts(blocks=len(starts), **counts)


def thinned(starts: np.ndarray, length: int, max_tokens: int | None) -> np.ndarray:
    """Of the starts of blocks as many as make so many tokens, evenly, so that they still stand for the whole text."""
    if max_tokens is not None and len(starts) > max_tokens // length:
        return starts[np.linspace(0, len(starts) - 1, max_tokens // length).astype(int)]
    return starts


def _write_long(params: CorpusParams, folder: Path) -> int:
    """(n, long_block) of the train split, each of one document unless `long_across`; returns n.

    Raises: UserError where the text does not fill one.
    """
    length, (_, tokens, ends) = params.long_block or 1, files_of(folder, "train")
    starts = thinned(long_starts(np.load(ends), length, params.long_across), length, params.max_tokens)
    if not len(starts):
        raise UserError(_too_short(params, np.load(ends)))
    gather(tokens, files_of(folder, LONG)[0], starts, length)
    return len(starts)


def long_starts(ends: np.ndarray, length: int, across: bool) -> np.ndarray:
    """Where blocks of so many tokens start that do not overlap: of the whole text, or each within one document.

    Args:
        ends: (documents,) where each of them ends.
    """
    if across:
        return np.arange(ends[-1] // length) * length
    starts = np.concatenate([[0], ends[:-1]])
    counts = (ends - starts) // length
    first = np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts, counts) + (np.arange(counts.sum()) - first) * length


def _too_short(params: CorpusParams, ends: np.ndarray) -> str:
    filled = min(int(ends[-1]), params.max_tokens or int(ends[-1]))
    if params.long_across or filled < (params.long_block or 0):
        return f"corpus.long_block: {filled} training tokens do not fill one block of {params.long_block}"
    longest = int(np.diff(ends, prepend=0).max())
    return (
        f"corpus.long_block: no training document has {params.long_block} tokens, the longest has {longest}; "
        "corpus.long_across takes blocks over documents' ends"
    )


def _write_sampled(
    params: CorpusParams, tokenizer: Any, encoder: Encoder, folder: Path, sample: Callable[[int], np.ndarray]
) -> tuple[SplitCounts, str]:
    """The train split as the teacher writes it: its counts, and its digest."""
    blocks: np.ndarray = sample((params.max_tokens or 0) // params.block).astype(encoder.dtype)
    ends = _sampled_ends(blocks, encoder.end)
    for file, array in zip(files_of(folder, "train"), (blocks, blocks.ravel(), ends), strict=True):
        np.save(file, array)
    texts = tokenizer.batch_decode(blocks, skip_special_tokens=True)
    words = sum(len(text.split()) + text.count("\n") for text in texts)
    size = sum(len(text.encode()) for text in texts)
    counts = SplitCounts(documents=len(ends), words=words, bytes=size, tokens=blocks.size, blocks=len(blocks))
    return counts, sha256(blocks.tobytes())


def _sampled_ends(blocks: np.ndarray, end: int) -> np.ndarray:
    """Where what is surely contiguous in sampled blocks (n, block) ends: at an end-of-text token or a block's end."""
    ends = blocks == end
    ends[:, -1] = True
    return np.flatnonzero(ends.ravel()) + 1
