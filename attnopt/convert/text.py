"""A folder of text as the three splits of a study: of every four documents the third is valid, the fourth test."""

import re
from pathlib import Path

from attnopt.core.errors import UserError
from attnopt.core.files import written_aside

SUFFIXES = (".txt", ".md")
SPLITS = ("train", "valid", "test")
EVERY = 4
Documents = dict[str, list[tuple[str, str]]]
"""(title, text) by split."""


def is_split(folder: Path) -> bool:
    """Whether it holds train.txt, valid.txt and test.txt, which are then taken as they are."""
    return all((folder / f"{split}.txt").is_file() for split in SPLITS)


def read_texts(folder: Path) -> Documents:
    """The folder's files, each a document; of fewer than EVERY, each is cut into EVERY parts, between paragraphs where
    it can be.

    Raises: UserError where it is no folder, a file is no text, or there is none.
    """
    if not folder.is_dir():
        raise UserError(f"--text: {folder} is no folder")
    files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    texts = [(path.relative_to(folder).as_posix(), _read(path)) for path in files]
    texts = [(name, text) for name, text in texts if text.strip()]
    if not texts:
        raise UserError(f"--text: {folder} holds no text: files {' or '.join(SUFFIXES)} are needed")
    if len(texts) < EVERY:
        texts = [(f"{name}, {i + 1}", part) for name, text in texts for i, part in enumerate(_parts(text))]
    found: Documents = {split: [] for split in SPLITS}
    for i, document in enumerate(texts):
        found[{2: "valid", 3: "test"}.get(i % EVERY, "train")].append(document)
    return found


def write_splits(found: Documents, out: Path) -> None:
    """train.txt, valid.txt and test.txt, each document under a title line as WikiText has them."""
    with written_aside(out) as aside:
        aside.mkdir()
        for split, documents in found.items():
            text = "".join(f" = {title.replace('=', '-')} = \n{_plain(text)}\n" for title, text in documents)
            (aside / f"{split}.txt").write_text(text, encoding="utf-8")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--text: {path} is not UTF-8: byte {error.start}") from None


def _parts(text: str) -> list[str]:
    """EVERY parts of about the same size."""
    cuts = [0]
    for i in range(1, EVERY):
        middle = max(cuts[-1], i * len(text) // EVERY)
        gap = text.find("\n\n", middle, middle + len(text) // (2 * EVERY))
        cuts.append(middle if gap < 0 else gap + 2)
    return [text[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _plain(text: str) -> str:
    """The text without lines that would be taken for the title of another document."""
    return re.sub(r"(?m)^ = ([^=\n]+) = $", r"\1", text)
