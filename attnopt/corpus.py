"""Text to blocks of tokens: three sources of documents, and the teacher itself; one format on disk."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from attnopt import wiki
from attnopt.errors import UserError
from attnopt.files import read_json, sha256, write_json
from attnopt.params import CorpusParams

HELD_OUT = ("valid", "test")
SPLITS = ("train", *HELD_OUT)
Documents = dict[str, list[str]]


def documents(params: CorpusParams) -> Documents:
    """The documents of every split that is read. Raises UserError naming the key or file where there are none."""
    sources: dict[str, Callable[[CorpusParams], Documents]] = {"enwiki-sample": _enwiki, "hub": _hub, "files": _files}
    found = sources[params.text](params)
    for split in _read_splits(params):
        if not any(text.strip() for text in found[split]):
            raise UserError(f"corpus.source {params.text}: the {split} split is empty")
    return found


def _read_splits(params: CorpusParams) -> tuple[str, ...]:
    return HELD_OUT if params.source == "teacher" else SPLITS


def split_documents(texts: list[str]) -> Documents:
    """80/10/10 by document in a fixed order: of every ten, the ninth is valid and the tenth is test."""
    named = {8: "valid", 9: "test"}
    splits: Documents = {split: [] for split in SPLITS}
    for i, text in enumerate(texts):
        splits[named.get(i % 10, "train")].append(text)
    return splits


def _enwiki(params: CorpusParams) -> Documents:
    return split_documents([text for _, text in wiki.sample_articles()])


def _files(params: CorpusParams) -> Documents:
    folder = Path(str(params.path))
    if not folder.is_dir():
        raise UserError(f"corpus.path: {folder} is no folder")
    found = {}
    for split in _read_splits(params):
        path = folder / f"{split}.txt"
        try:
            found[split] = articles(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            *others, last = (f"{split}.txt" for split in _read_splits(params))
            raise UserError(f"corpus.path: {path} is missing; {', '.join(others)} and {last} are needed") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}") from None
    return found


def articles(text: str) -> list[str]:
    """WikiText's articles, each from its title line on; any other text is one document."""
    before, *titled = re.split(r"(?m)^(?= = [^=\n]+ = $)", text)
    return [before, *titled] if before.strip() or not titled else [before + titled[0], *titled[1:]]


def _hub(params: CorpusParams) -> Documents:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        found = load_dataset(str(params.id), params.config, revision=params.revision)
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"corpus.source hub: {params.id} cannot be loaded ({reason}); "
            "with no hub at hand set corpus.source to files and corpus.path to a folder"
        ) from None
    names = {"train": ("train",), "valid": ("validation", "valid", "dev"), "test": ("test",)}
    return {split: _rows(found, names[split], params) for split in _read_splits(params)}


def _rows(dataset: Any, names: tuple[str, ...], params: CorpusParams) -> list[str]:
    name = next((n for n in names if n in dataset), None)
    if name is None:
        raise UserError(f"corpus.id: {params.id} has no {names[0]} split; it has {', '.join(dataset)}")
    rows = dataset[name]
    if params.column not in rows.column_names:
        raise UserError(f"corpus.column: {params.id} has no column '{params.column}'; it has {rows.column_names}")
    texts = list(rows[params.column])
    return articles("".join(texts)) if any(t.startswith(" = ") for t in texts[:50]) else texts


def tokenize(texts: list[str], tokenizer: Any, block: int, max_tokens: int | None = None) -> tuple[np.ndarray, dict]:
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


def _counts(texts: list[str], tokens: int, blocks: int) -> dict[str, int]:
    words = sum(len(text.split()) + text.count("\n") for text in texts)
    size = sum(len(text.encode()) for text in texts)
    return {"documents": len(texts), "words": words, "bytes": size, "tokens": tokens, "blocks": blocks}


def write(
    params: CorpusParams, tokenizer: Any, out: Path, sample: Callable[[int], np.ndarray] | None = None
) -> dict[str, Any]:
    """Tokenise the whole corpus into the folder `out`: {split}.npy and manifest.json, which is returned.

    Args:
        sample: gives so many blocks of the teacher's own text; needed for source teacher, and for no other.
    Raises: UserError where a split does not fill one block.
    """
    found = documents(params)
    splits, digests = {}, [text for split in SPLITS for text in found.get(split, ())]
    for split in SPLITS:
        limit = params.max_tokens if split == "train" else params.max_eval_tokens
        if split == "train" and sample:
            blocks, splits[split] = _as_corpus(sample((limit or 0) // params.block), tokenizer)
            digests.append(sha256(blocks.tobytes()))
        else:
            blocks, splits[split] = tokenize(found[split], tokenizer, params.block, limit)
        if not len(blocks):
            tokens = splits[split]["tokens"]
            raise UserError(f"corpus: the {split} split has {tokens} tokens, fewer than one block of {params.block}")
        np.save(out / f"{split}.npy", blocks)
    manifest = {
        "source": params.source,
        "name": params.id or params.path or wiki.SAMPLE,
        "sha256": sha256(*digests),
        "tokenizer": sha256(tokenizer.backend_tokenizer.to_str()),
        "vocabulary": len(tokenizer),
        "block": params.block,
        "splits": splits,
    }
    write_json(out / "manifest.json", manifest)
    return manifest


def _as_corpus(sampled: np.ndarray, tokenizer: Any) -> tuple[np.ndarray, dict[str, int]]:
    """Sampled blocks as `tokenize` would give them; a document is what ends in an end-of-text token."""
    counts = _counts(tokenizer.batch_decode(sampled, skip_special_tokens=True), sampled.size, len(sampled))
    counts["documents"] = int((sampled == tokenizer.eos_token_id).sum())
    return sampled.astype(_dtype(tokenizer)), counts


def read(folder: Path, split: str) -> np.ndarray:
    """The split's blocks (n, block), memory-mapped and read-only."""
    path = folder / f"{split}.npy"
    if not path.is_file():
        raise UserError(f"{path} is missing: run `dvc repro tokenize` first")
    return np.load(path, mmap_mode="r")


def manifest_of(folder: Path) -> dict[str, Any]:
    return read_json(folder / "manifest.json")
