"""Where the text comes from: documents of three splits, from the enwiki sample, files or a hub."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attnopt.core.errors import UserError
from attnopt.corpus import wikipedia as wiki
from attnopt.corpus.params import CorpusParams

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
