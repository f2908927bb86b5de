"""Text to blocks of tokens: three sources of documents, and the teacher itself; one format on disk."""

from collections.abc import Callable
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


def tokenize(
    texts: list[str], tokenizer: Any, block: int, max_tokens: int | None = None
) -> tuple[np.ndarray, SplitCounts]:
    """Blocks (n, block) of token ids, every document followed by the end-of-text token, and the text's statistics.

    Words are counted as WikiText does, line ends included. With `max_tokens` the blocks are thinned out evenly, so that
    they still stand for the whole text.
    """
    end = tokenizer.eos_token_id
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    ids = [token for document in encoded for token in (*document, end)]
    blocks: np.ndarray = np.array(ids[: len(ids) // block * block], dtype=_dtype(tokenizer)).reshape(-1, block)
    if max_tokens is not None and len(blocks) > max_tokens // block:
        blocks = blocks[np.linspace(0, len(blocks) - 1, max_tokens // block).astype(int)]
    return blocks, _counts(texts, len(ids), len(blocks))


def _dtype(tokenizer: Any) -> type:
    return np.uint16 if len(tokenizer) <= 2**16 else np.int32


def _counts(texts: list[str], tokens: int, blocks: int) -> SplitCounts:
    words = sum(len(text.split()) + text.count("\n") for text in texts)
    size = sum(len(text.encode()) for text in texts)
    return SplitCounts(documents=len(texts), words=words, bytes=size, tokens=tokens, blocks=blocks)


def write_corpus(
    params: CorpusParams, tokenizer: Any, out: Path, sample: Callable[[int], np.ndarray] | None = None
) -> CorpusManifest:
    """Tokenise the whole corpus into the folder `out`: {split}.npy, long.npy and manifest.json, which is returned.

    Args:
        sample: gives so many blocks of the teacher's own text; needed for source teacher, and for no other.
    Raises: UserError where a split does not fill one block.
    """
    found = documents(params)
    splits: dict[str, SplitCounts] = {}
    digests = [text for split in SPLITS for text in found.get(split, ())]
    for split in SPLITS:
        limit = params.max_tokens if split == "train" else params.max_eval_tokens
        if split == "train" and sample:
            blocks, splits[split] = _as_corpus(sample((limit or 0) // params.block), tokenizer)
            digests.append(sha256(blocks.tobytes()))
        else:
            blocks, splits[split] = tokenize(found[split], tokenizer, params.block, limit)
        if not len(blocks):
            tokens = splits[split].tokens
            raise UserError(f"corpus: the {split} split has {tokens} tokens, fewer than one block of {params.block}")
        np.save(out / f"{split}.npy", blocks)
    if params.long_block:
        np.save(out / f"{LONG}.npy", _long_blocks(found["train"], tokenizer, params))
    manifest = CorpusManifest(
        source=params.source,
        name=params.id or params.path or wiki.SAMPLE,
        sha256=sha256(*digests),
        tokenizer=sha256(tokenizer.backend_tokenizer.to_str()),
        vocabulary=len(tokenizer),
        block=params.block,
        long_block=params.long_block,
        splits=splits,
    )
    manifest.write(out / "manifest.json")
    return manifest


def _long_blocks(texts: list[str], tokenizer: Any, params: CorpusParams) -> np.ndarray:
    """(n, long_block) contiguous text of the train split. Raises UserError where it does not fill one."""
    assert params.long_block is not None
    blocks, counts = tokenize(texts, tokenizer, params.long_block, params.max_tokens)
    if not len(blocks):
        tokens = min(counts.tokens, params.max_tokens or counts.tokens)
        raise UserError(f"corpus.long_block: {tokens} training tokens do not fill one block of {params.long_block}")
    return blocks


def _as_corpus(sampled: np.ndarray, tokenizer: Any) -> tuple[np.ndarray, SplitCounts]:
    """Sampled blocks as `tokenize` would give them; a document is what ends in an end-of-text token."""
    counts = _counts(tokenizer.batch_decode(sampled, skip_special_tokens=True), sampled.size, len(sampled))
    documents = int((sampled == tokenizer.eos_token_id).sum())
    return sampled.astype(_dtype(tokenizer)), counts.model_copy(update={"documents": documents})


def read_blocks(folder: Path, split: str) -> np.ndarray:
    """The split's blocks (n, block), or (n, long_block) of LONG, memory-mapped and read-only.

    Raises: UserError naming the file where it is missing, damaged or not what the manifest says.
    """
    manifest, path = read_manifest(folder), folder / f"{split}.npy"
    try:
        blocks = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro tokenize` first") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): run `dvc repro -f -s tokenize`") from None
    of_split = (manifest.splits[split].blocks, manifest.block) if split != LONG else None
    expected = of_split or (*blocks.shape[:1], manifest.long_block)
    if blocks.shape != expected:
        raise UserError(f"{path} holds blocks {blocks.shape}, its manifest says {expected}: run `dvc repro tokenize`")
    return blocks


def read_all_blocks(folder: Path) -> dict[str, np.ndarray]:
    """Every split's blocks, and the longer ones where there are any. Raises UserError as `read_blocks` does."""
    long = (LONG,) if read_manifest(folder).long_block else ()
    return {split: read_blocks(folder, split) for split in (*SPLITS, *long)}


def read_manifest(folder: Path) -> CorpusManifest:
    """What `write_corpus` says of the blocks. Raises UserError where it is missing or damaged."""
    return CorpusManifest.read(folder / "manifest.json")
