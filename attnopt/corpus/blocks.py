"""Blocks of tokens and whole documents, read through maps and never whole.

For every split: {split}.npy, the blocks; {split}.tokens.npy, all documents one after the other, each with its
end-of-text token; {split}.ends.npy, where each of them ends.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attnopt.core.errors import UserError
from attnopt.corpus.sources import SPLITS
from attnopt.records.corpus import CorpusManifest

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

    def first(self, tokens: int) -> "Documents":
        """The first documents, as many as end within so many tokens; of the first one so many tokens at least."""
        ends = self.ends[: np.searchsorted(self.ends, tokens, side="right")]
        ends = ends if len(ends) or not len(self) else np.array([tokens])
        return Documents(self.tokens[: ends[-1] if len(ends) else 0], ends)

    @property
    def starts(self) -> np.ndarray:
        """(documents,) where each document starts."""
        return np.concatenate([[0], self.ends[:-1]])

    @property
    def sizes(self) -> np.ndarray:
        """(documents,) the tokens of each."""
        return self.ends - self.starts


def files_of(folder: Path, split: str) -> tuple[Path, Path, Path]:
    """Of a split: its blocks, the tokens of its documents, and where these end."""
    return folder / f"{split}.npy", folder / f"{split}.tokens.npy", folder / f"{split}.ends.npy"


def read_blocks(folder: Path, split: str) -> np.ndarray:
    """The split's blocks (n, block), or (n, long_block) of LONG, memory-mapped and read-only.

    Raises: UserError naming the file where it is missing, damaged or not what the manifest says.
    """
    manifest, path = read_manifest(folder), files_of(folder, split)[0]
    if split == LONG:
        return _load(path, "blocks", (manifest.long_blocks, manifest.long_block or 0))
    return _load(path, "blocks", (manifest.splits[split].blocks, manifest.block))


def read_documents(folder: Path, split: str) -> Documents:
    """The split's documents, all of them and whole, memory-mapped and read-only.

    Raises: UserError naming the file where it is missing, damaged or not what the manifest says.
    """
    counts = read_manifest(folder).splits[split]
    _, tokens, ends = files_of(folder, split)
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
    """What `write.write_corpus` says of the blocks. Raises UserError where it is missing or damaged."""
    return CorpusManifest.read(folder / "manifest.json")
