"""Files of the repository on the site: whatever a page links to has a place there, and the links lead to it.

A page of docs/ keeps its name, and all else lies under `repository/`: Markdown as a page, a folder as its README, code
as a page that shows it, and pictures, tables and HTML as they are. Paths are relative to the repository, with slashes.
"""

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
CODE = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".txt": "text", ".sh": "bash", ".j2": "html"}
"""Suffixes of files that are shown as a page, and how they are highlighted."""
_CODE = re.compile(r"(^ *(?P<mark>```+|~~~+).*?^ *(?P=mark) *$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()[^)\s]+(?=\))")
_INCLUDE = re.compile(r"^<!-- from (?P<file>[\w./-]+)(?P<section>: .+?)? -->$", re.MULTILINE)


def place(path: str) -> str:
    """Where a file or folder of the repository lies among the site's sources."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        path += "/README.md"
    return f"repository/{path}" + (".md" if Path(path).suffix in CODE else "")


def target(link: str, source: str) -> tuple[str, str] | None:
    """What a link in the file `source` leads to: a path, and `#fragment` or nothing.

    Returns: None where that is no file and no folder with a README of the repository.
    """
    name, mark, fragment = link.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
    there = ROOT / path
    if not name or ":" in name or path.startswith("..") or not (there.is_file() or (there / "README.md").is_file()):
        return None
    return path, mark + fragment


def linked(markdown: str, source: str) -> Iterator[str]:
    """Paths that the Markdown of a file leads to."""
    for link in _LINK.findall(_CODE.sub("", markdown)):
        if found := target(link, source):
            yield found[0]


def closure(sources: Iterable[str]) -> set[str]:
    """These files and all that their pages lead to, directly or not."""
    seen: set[str] = set()
    waiting = list(sources)
    while waiting:
        path = waiting.pop()
        if (ROOT / path).is_dir():
            path += "/README.md"
        if path not in seen:
            seen.add(path)
            waiting += linked(markdown_of(path), path) if path.endswith(".md") else ()
    return seen


def markdown_of(path: str) -> str:
    """The Markdown of a file; where it says `<!-- from FILE: HEADING -->` that section, without its heading, of another
    one, or what is before its first section where no heading is named. Raises KeyError where there is no such one."""

    def include(match: re.Match[str]) -> str:
        return _relinked(section(match["file"], (match["section"] or "").removeprefix(": ")), match["file"], path)

    return _INCLUDE.sub(include, (ROOT / path).read_text(encoding="utf-8"))


def section(path: str, heading: str) -> str:
    """What stands under a heading of the second level in a file, or between its title and the first of these."""
    parts = re.split(r"^## (.+)\n", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE)
    if not heading:
        return parts[0].partition("\n")[2].strip()
    return dict(zip(parts[1::2], parts[2::2], strict=True))[heading].strip()


def rewritten(markdown: str, source: str) -> str:
    """A file's Markdown with its links as its page has them: from place to place."""
    start = posixpath.dirname(place(source))
    return _with_links(markdown, source, lambda path: posixpath.relpath(place(path), start))


def shown(path: str) -> str:
    """The page that shows a file of code."""
    text = (ROOT / path).read_text(encoding="utf-8").rstrip()
    return f"# {path}\n\n`````{CODE[Path(path).suffix]}\n{text}\n`````\n"


def _relinked(markdown: str, source: str, elsewhere: str) -> str:
    """Markdown of one file as it is to be in another one."""
    start = posixpath.dirname(elsewhere)
    return _with_links(markdown, source, lambda path: posixpath.relpath(path, start))


def _with_links(markdown: str, source: str, to: Callable[[str], str]) -> str:
    def lead(match: re.Match[str]) -> str:
        found = target(match[0], source)
        return match[0] if found is None else to(found[0]) + found[1]

    pieces, end = [], 0
    for code in _CODE.finditer(markdown):
        pieces += [_LINK.sub(lead, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, _LINK.sub(lead, markdown[end:])])
