"""Text to blocks of tokens, and to whole documents: three sources and the teacher itself; one format on disk.

For every split: {split}.npy, the blocks; {split}.tokens.npy, all documents one after the other, each with its
end-of-text token; {split}.ends.npy, where each of them ends.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attnopt.core.errors import UserError
from attnopt.core.files import sha256
from attnopt.corpus import wikipedia as wiki
from attnopt.corpus.params import CorpusParams
from attnopt.corpus.sources import SPLITS, documents
from attnopt.records.corpus import CorpusManifest, SplitCounts

LONG = "long"
"""The train split cut into longer blocks."""


@dataclass(frozen=True)
class Documents:
    """A split's documents, whole: `documents[i]` are the tokens of one, the last of which ends the text.

    Attributes:
        tokens: (tokens,) of all documents, one after the other. ends: (documents,) where each of them ends.
    """

    tokens: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[self.starts[index] : self.ends[index]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.tokens[start:end] for start, end in zip(self.starts, self.ends, strict=True))

    @property
    def starts(self) -> np.ndarray:
        """(documents,) where each document starts."""
        return np.concatenate([[0], self.ends[:-1]])

    @property
    def sizes(self) -> np.ndarray:
        """(documents,) the tokens of each."""
        return self.ends - self.starts


def tokenize(texts: list[str], tokenizer: Any) -> Documents:
    """Every text's tokens, followed by the end-of-text token."""
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    ids = [token for document in encoded for token in (*document, tokenizer.eos_token_id)]
    ends = np.cumsum([len(document) + 1 for document in encoded])
    return Documents(np.array(ids, dtype=_dtype(tokenizer)), ends)


def cut(tokens: np.ndarray, block: int, max_tokens: int | None = None) -> np.ndarray:
    """Blocks (n, block) of a stream of tokens, what is left at its end dropped.

    With `max_tokens` the blocks are thinned out evenly, so that they still stand for the whole text.
    """
    blocks = tokens[: len(tokens) // block * block].reshape(-1, block)
    if max_tokens is not None and len(blocks) > max_tokens // block:
        blocks = blocks[np.linspace(0, len(blocks) - 1, max_tokens // block).astype(int)]
    return blocks


def _dtype(tokenizer: Any) -> type:
    return np.uint16 if len(tokenizer) <= 2**16 else np.int32


def _counts(texts: list[str], documents: Documents, blocks: np.ndarray) -> SplitCounts:
    """Words are counted as WikiText does, line ends included."""
    words = sum(len(text.split()) + text.count("\n") for text in texts)
    size = sum(len(text.encode()) for text in texts)
    tokens = len(documents.tokens)
    return SplitCounts(documents=len(documents), words=words, bytes=size, tokens=tokens, blocks=len(blocks))


def write_corpus(
    params: CorpusParams, tokenizer: Any, out: Path, sample: Callable[[int], np.ndarray] | None = None
) -> CorpusManifest:
    """Tokenise the whole corpus into the folder `out`: blocks, documents and manifest.json, which is returned.

    Args:
        sample: gives so many blocks of the teacher's own text; needed for source teacher, and for no other.
    Raises: UserError where a split does not fill one block.
    """
    found = documents(params)
    splits: dict[str, SplitCounts] = {}
    long: np.ndarray = np.zeros((0, 0))
    digests = [text for split in SPLITS for text in found.get(split, ())]
    for split in SPLITS:
        limit = params.max_tokens if split == "train" else params.max_eval_tokens
        if split == "train" and sample:
            blocks: np.ndarray = sample((limit or 0) // params.block).astype(_dtype(tokenizer))
            whole, texts = (
                _sampled_documents(blocks, tokenizer),
                tokenizer.batch_decode(blocks, skip_special_tokens=True),
            )
            digests.append(sha256(blocks.tobytes()))
        else:
            texts = found[split]
            whole = tokenize(texts, tokenizer)
            blocks = cut(whole.tokens, params.block, limit)
        splits[split] = _counts(texts, whole, blocks)
        if not len(blocks):
            tokens = splits[split].tokens
            raise UserError(f"corpus: the {split} split has {tokens} tokens, fewer than one block of {params.block}")
        for file, array in zip(_files(out, split), (blocks, whole.tokens, whole.ends), strict=True):
            np.save(file, array)
        if split == "train" and params.long_block:
            long = _long_blocks(whole.tokens, params.long_block, limit)
            np.save(_files(out, LONG)[0], long)
    manifest = CorpusManifest(
        source=params.source,
        name=params.id or params.path or wiki.SAMPLE,
        sha256=sha256(*digests),
        tokenizer=sha256(tokenizer.backend_tokenizer.to_str()),
        vocabulary=len(tokenizer),
        block=params.block,
        long_block=params.long_block,
        long_blocks=len(long),
        splits=splits,
    )
    manifest.write(out / "manifest.json")
    return manifest


def _long_blocks(tokens: np.ndarray, length: int, limit: int | None) -> np.ndarray:
    """(n, length) contiguous text of the train split. Raises UserError where it does not fill one."""
    blocks = cut(tokens, length, limit)
    if not len(blocks):
        filled = min(len(tokens), limit or len(tokens))
        raise UserError(f"corpus.long_block: {filled} training tokens do not fill one block of {length}")
    return blocks


def _files(folder: Path, split: str) -> tuple[Path, Path, Path]:
    return folder / f"{split}.npy", folder / f"{split}.tokens.npy", folder / f"{split}.ends.npy"


def _sampled_documents(blocks: np.ndarray, tokenizer: Any) -> Documents:
    """Sampled blocks (n, block) as documents: what is contiguous for sure, up to an end-of-text token or a block's."""
    ends = blocks == tokenizer.eos_token_id
    ends[:, -1] = True
    return Documents(blocks.ravel(), np.flatnonzero(ends.ravel()) + 1)


def read_blocks(folder: Path, split: str) -> np.ndarray:
    """The split's blocks (n, block), or (n, long_block) of LONG, memory-mapped and read-only.

    Raises: UserError naming the file where it is missing, damaged or not what the manifest says.
    """
    manifest, path = read_manifest(folder), _files(folder, split)[0]
    if split == LONG:
        return _load(path, "blocks", (manifest.long_blocks, manifest.long_block or 0))
    return _load(path, "blocks", (manifest.splits[split].blocks, manifest.block))


def read_documents(folder: Path, split: str) -> Documents:
    """The split's documents, all of them and whole, memory-mapped and read-only.

    Raises: UserError naming the file where it is missing, damaged or not what the manifest says.
    """
    counts = read_manifest(folder).splits[split]
    _, tokens, ends = _files(folder, split)
    return Documents(_load(tokens, "tokens", (counts.tokens,)), _load(ends, "documents", (counts.documents,)))


def _load(path: Path, what: str, expected: tuple[int | None, ...]) -> np.ndarray:
    """A file's array of the shape expected, in which None stands for any size."""
    try:
        found: np.ndarray = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro tokenize` first") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): run `dvc repro -f -s tokenize`") from None
    if found.shape != expected:
        raise UserError(f"{path} holds {what} {found.shape}, its manifest says {expected}: run `dvc repro tokenize`")
    return found


def read_all_blocks(folder: Path) -> dict[str, np.ndarray]:
    """Every split's blocks, and the longer ones where there are any. Raises UserError as `read_blocks` does."""
    long = (LONG,) if read_manifest(folder).long_block else ()
    return {split: read_blocks(folder, split) for split in (*SPLITS, *long)}


def read_manifest(folder: Path) -> CorpusManifest:
    """What `write_corpus` says of the blocks. Raises UserError where it is missing or damaged."""
    return CorpusManifest.read(folder / "manifest.json")
