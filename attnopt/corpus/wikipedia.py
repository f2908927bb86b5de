"""Turn Wikipedia text, as dumps and WikiText carry it, into plain prose paragraphs."""

import bz2
import itertools
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

SAMPLE = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
BACK_MATTER = {
    "bibliography", "citations", "external links", "footnotes", "further reading", "gallery", "notes",
    "notes and references", "publications", "references", "see also", "sources", "works cited",
}  # fmt: skip

_HEADING = re.compile(r"^\s*(={2,6})\s*(.*?)\s*\1\s*$")
_SPLIT_HEADING = re.compile(r"^ ?((?:= )+)(.+?) (?:= ?)+$")
_PROSE_END = re.compile(r"[.!?:;][\"')\]]*$")


def sample_path() -> Path:
    """The dump of Wikipedia articles that gensim ships among its test data."""
    return Path(str(resources.files("gensim"))) / "test" / "test_data" / SAMPLE


def sample_articles(path: Path | None = None) -> Iterator[tuple[str, str]]:
    """(title, cleaned text) of the dump's 107 articles in its order; redirects are left out."""
    from gensim.corpora.wikicorpus import extract_pages, filter_wiki

    with bz2.open(path or sample_path(), "rb") as dump:
        for title, markup, _ in extract_pages(dump, filter_namespaces=("0",)):
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
    return "\n".join([f"= {title} =", "", *_drop_empty_sections(lines)]).strip() + "\n"


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


def _drop_empty_sections(lines: list[str]) -> Iterator[str]:
    filled = [line for line in lines if line]
    for line, following in itertools.pairwise([*filled, "= end ="]):
        own, next_ = _depth(line), _depth(following)
        if not own or not next_ or next_ > own:
            yield from (line, "")


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip("=")) if line.startswith("=") else 0


def undo_wikitext(text: str) -> str:
    """WikiText's tokenised text as natural text, without the sentences that hold `<unk>`."""
    lines = []
    for raw in text.split("\n"):
        if not raw.strip():
            continue
        if heading := _SPLIT_HEADING.match(raw):
            bar = heading[1].replace(" ", "")
            if "<unk>" not in raw:
                lines += [f"{bar} {_join_tokens(heading[2])} {bar}", ""]
            continue
        sentences = re.split(r"(?<= [.?!]) (?!\")", raw.strip())
        kept = " ".join(s for s in sentences if _is_whole(s))
        if kept:
            lines += [_join_tokens(kept), ""]
    return "\n".join(_drop_empty_sections(lines)).strip() + "\n"


def _is_whole(sentence: str) -> bool:
    """False for a sentence with an unknown word, and for the torn ends that splitting at "lit ." leaves."""
    starts_well = sentence[:1].isupper() or sentence[:1].isdigit() or sentence.startswith('" ')
    balanced = sentence.count("(") == sentence.count(")") and sentence.count('"') % 2 == 0
    return "<unk>" not in sentence and starts_well and balanced and len(sentence.split()) > 3


def _join_tokens(text: str) -> str:
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = _pair_quotes(text)
    text = re.sub(r" ([,.;:?!%)\]])", r"\1", text)
    text = re.sub(r"([(\[$£€]) ", r"\1", text)
    text = re.sub(r" ('(?:s|t|re|ve|ll|d|m)\b|n't\b|')", r"\1", text)
    return re.sub(r"\s+", " ", text.replace(" – ", "–") if re.search(r"\d – \d", text) else text).strip()


def _pair_quotes(text: str) -> str:
    """`say " so "` as `say "so"`: quotes in WikiText stand alone and alternate between opening and closing."""
    parts = text.split('"')
    for i in range(1, len(parts)):
        if i % 2:
            parts[i] = parts[i].lstrip()
        else:
            parts[i - 1] = parts[i - 1].rstrip()
    return '"'.join(parts)
