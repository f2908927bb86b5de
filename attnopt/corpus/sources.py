"""Where the text comes from: documents of three splits, from the enwiki sample, files or a hub, read as a stream.

Nothing here holds a split: files are read a chunk at a time, a hub's data sets are streamed shard by shard.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from attnopt.core.errors import RunError, UserError
from attnopt.corpus import wikipedia as wiki
from attnopt.corpus.params import CorpusParams

HELD_OUT = ("valid", "test")


SPLITS = ("train", *HELD_OUT)

Segment = tuple[str, bool]
"""Text that goes on with the document before it, unless that has ended; and whether the document ends with it."""
CHUNK = 1 << 20
"""Characters of a file that are held at a time."""
_TITLE = re.compile(r"(?m)^(?= = [^=\n]+ = $)")


@dataclass(frozen=True)
class Source:
    """A split's text. `read(i)` gives the segments of its shard i, each time anew and the same.

    Attributes:
        shards: a document never goes on in the next one. bytes: of the text, where it is known.
    """

    read: Callable[[int], Iterator[Segment]]
    shards: int = 1
    bytes: int | None = None


def open_sources(params: CorpusParams) -> dict[str, Source]:
    """The source of every split that is read.

    Raises: UserError naming the key or file where one is missing or empty, before anything is read through.
    """
    opened: dict[str, Callable[[CorpusParams], dict[str, Source]]] = {
        "enwiki-sample": _enwiki,
        "hub": _hub,
        "files": _files,
    }
    found = opened[params.text](params)
    for split, source in found.items():
        parts = (text for shard in range(source.shards) for text, _ in source.read(shard))
        if not any(text.strip() for text in parts):
            raise UserError(f"corpus.source {params.text}: the {split} split is empty")
    return found


def documents(source: Source) -> Iterator[str]:
    """Whole documents, one after the other."""
    held: list[str] = []
    for shard in range(source.shards):
        for text, ends in source.read(shard):
            held.append(text)
            if ends:
                yield "".join(held)
                held.clear()


def _read_splits(params: CorpusParams) -> tuple[str, ...]:
    return HELD_OUT if params.source == "teacher" else SPLITS


def split_documents(texts: list[str]) -> dict[str, list[str]]:
    """80/10/10 by document in a fixed order: of every ten, the ninth is valid and the tenth is test."""
    named = {8: "valid", 9: "test"}
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for i, text in enumerate(texts):
        splits[named.get(i % 10, "train")].append(text)
    return splits


def _enwiki(params: CorpusParams) -> dict[str, Source]:
    texts = split_documents([text for _, text in wiki.sample_articles()])
    return {split: source_of(texts[split]) for split in _read_splits(params)}


def source_of(texts: list[str]) -> Source:
    """Documents at hand, as one shard."""
    return Source(lambda _: ((text, True) for text in texts), bytes=sum(len(text.encode()) for text in texts))


def _files(params: CorpusParams) -> dict[str, Source]:
    folder = Path(str(params.path))
    if not folder.is_dir():
        raise UserError(f"corpus.path: {folder} is no folder")
    found = {}
    for split in _read_splits(params):
        path = folder / f"{split}.txt"
        if not path.is_file():
            *others, last = (f"{split}.txt" for split in _read_splits(params))
            raise UserError(f"corpus.path: {path} is missing; {', '.join(others)} and {last} are needed")
        found[split] = Source(partial(_read_file, path), bytes=path.stat().st_size)
    return found


def _read_file(path: Path, _: int) -> Iterator[Segment]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from articles(whole_lines(iter(partial(file.read, CHUNK), "")))
    except UnicodeDecodeError:
        at, byte = _undecodable(path)
        raise UserError(f"{path} is not UTF-8: byte {at} is 0x{byte:02x}") from None


def _undecodable(path: Path) -> tuple[int, int]:
    """Offset and value of the first byte that is no UTF-8."""
    before, rest = 0, b""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            rest += chunk
            try:
                rest.decode()
                before, rest = before + len(rest), b""
            except UnicodeDecodeError as error:
                if error.reason != "unexpected end of data":
                    return before + error.start, rest[error.start]
                before, rest = before + error.start, rest[error.start :]
    return before, rest[0]


def whole_lines(texts: Iterable[str]) -> Iterator[str]:
    """The same text in chunks of at least CHUNK characters that end where a line does, the last one excepted.

    A line longer than that is not waited for.
    """
    held: list[str] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size >= CHUNK:
            joined = "".join(held)
            end = joined.rfind("\n") + 1 or len(joined)
            yield joined[:end]
            held, size = [joined[end:]], len(joined) - end
    if rest := "".join(held):
        yield rest


def articles(chunks: Iterable[str]) -> Iterator[Segment]:
    """WikiText's articles, each from its title line on; any other text is one document.

    Args:
        chunks: of text, each of which begins where a line does.
    """
    held, blank = "", True
    for chunk in chunks:
        for i, text in enumerate(_TITLE.split(chunk)):
            ends = i > 0 and not blank
            if held or ends:
                yield held, ends
            held = text
            blank = (blank or ends) and not text.strip()
    if held:
        yield held, True


def _hub(params: CorpusParams) -> dict[str, Source]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        found = load_dataset(str(params.id), params.config, revision=params.revision, streaming=True)
        names = {"train": ("train",), "valid": ("validation", "valid", "dev"), "test": ("test",)}
        return {split: _stream(found, names[split], params) for split in _read_splits(params)}
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"corpus.source hub: {params.id} cannot be loaded ({reason}); "
            "with no hub at hand set corpus.source to files and corpus.path to a folder"
        ) from None


def _stream(found: Any, names: tuple[str, ...], params: CorpusParams) -> Source:
    name = next((n for n in names if n in found), None)
    if name is None:
        raise UserError(f"corpus.id: {params.id} has no {names[0]} split; it has {', '.join(found)}")
    rows, column = found[name], params.column
    first = list(islice(rows, 50))
    columns = rows.column_names or list(first[0] if first else ())
    if column not in columns:
        raise UserError(f"corpus.column: {params.id} has no column '{column}'; it has {columns}")
    if wrong := next((row for row in first if not isinstance(row[column], str | None)), None):
        raise UserError(f"corpus.column: '{column}' of {params.id} is no text but {type(wrong[column]).__name__}")
    if any((row[column] or "").startswith(" = ") for row in first):
        return Source(lambda _: articles(whole_lines(_texts(rows, params))))
    shards = rows.num_shards
    return Source(lambda i: ((text, True) for text in _texts(rows.shard(shards, i), params)), shards)


def _texts(rows: Any, params: CorpusParams) -> Iterator[str]:
    from datasets.exceptions import DatasetsError

    try:
        for row in rows:
            yield row[params.column] or ""
    except (OSError, DatasetsError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise RunError(f"{params.id} broke off ({reason}); run again to go on from there") from None
