"""Make the bundled Wikipedia sample: 107 articles of the dump that gensim ships among its test data, as plain prose.

    pip install gensim && python -m attnopt.tools.enwiki

It needs gensim for its markup filter, and is run once: the result lies in attnopt/assets/enwiki-sample.
"""

import bz2
import json
import lzma
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from attnopt.core.files import written_aside
from attnopt.corpus.wikipedia import ARTICLES, SAMPLE, drop_empty_sections

BACK_MATTER = {
    "bibliography", "citations", "external links", "footnotes", "further reading", "gallery", "notes",
    "notes and references", "publications", "references", "see also", "sources", "works cited",
}  # fmt: skip

_HEADING = re.compile(r"^\s*(={2,6})\s*(.*?)\s*\1\s*$")
_PROSE_END = re.compile(r"[.!?:;][\"')\]]*$")


def dump_path() -> Path:
    """The dump among gensim's test data."""
    return Path(str(resources.files("gensim"))) / "test" / "test_data" / SAMPLE


def dump_articles(dump: Path) -> Iterator[tuple[str, str]]:
    """(title, cleaned text) of a dump's articles in its order; redirects are left out."""
    from gensim.corpora.wikicorpus import extract_pages, filter_wiki

    with bz2.open(dump, "rb") as file:
        for title, markup, _ in extract_pages(file, filter_namespaces=("0",)):
            if not markup.lstrip().lower().startswith("#redirect"):
                yield title, clean_article(title, filter_wiki(markup))


def clean_article(title: str, text: str) -> str:
    """Headings and prose of one article whose markup gensim has stripped; tables, captions and back matter dropped."""
    lines: list[str] = []
    skip_deeper_than = 99
    for raw in text.split("\n"):
        if heading := _HEADING.match(raw):
            depth = len(heading[1])
            if depth <= skip_deeper_than:
                skip_deeper_than = depth if heading[2].lower() in BACK_MATTER else 99
                if skip_deeper_than == 99:
                    lines += [f"{heading[1]} {_clean_line(heading[2])} {heading[1]}", ""]
        elif skip_deeper_than == 99 and (line := _clean_line(raw)) and _is_prose(line):
            lines += [line, ""]
    return "\n".join([f"= {title} =", "", *drop_empty_sections(lines)]).strip() + "\n"


def _clean_line(line: str) -> str:
    line = re.sub(r"'{2,}|<[^>]*>|\[https?:[^\]]*\]|https?:\S+|__[A-Z]+__", "", line)
    line = re.sub(r"^[*#:;|!+\s]+", "", line)
    line = re.sub(r"\(\s*[,;:\s]*\)", "", line)
    line = re.sub(r"\(\s*[,;]\s*", "(", line)
    line = line.replace("\xa0", " ").replace("&nbsp;", " ")
    line = re.sub(r"\s+([,.;:?!)])", r"\1", line)
    return re.sub(r"\s+", " ", line).strip()


def _is_prose(line: str) -> bool:
    return len(line.split()) >= 6 and bool(_PROSE_END.search(line)) and not re.search(r"[{}|\[\]]|\w=\"", line)


def write_sample(out: Path) -> None:
    """The articles as compressed JSON lines of title and text."""
    lines = (json.dumps({"title": t, "text": x}, ensure_ascii=False) + "\n" for t, x in dump_articles(dump_path()))
    content = lzma.compress("".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME)
    with written_aside(out) as aside:
        aside.write_bytes(content)


if __name__ == "__main__":
    write_sample(ARTICLES)
