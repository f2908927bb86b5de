"""Wikipedia text as plain prose: the bundled sample, and WikiText's tokenised text undone."""

import itertools
import json
import lzma
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

SAMPLE = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
"""The dump that the bundled articles are from, see attnopt/tools/enwiki.py."""
ARTICLES = Path(str(resources.files("attnopt"))) / "assets" / "enwiki-sample" / "articles.jsonl.xz"

_SPLIT_HEADING = re.compile(r"^ ?((?:= )+)(.+?) (?:= ?)+$")


def sample_articles() -> list[tuple[str, str]]:
    """(title, cleaned text) of the bundled sample's 107 articles, in the dump's order."""
    with lzma.open(ARTICLES, "rt", encoding="utf-8") as lines:
        return [(article["title"], article["text"]) for article in map(json.loads, lines)]


def drop_empty_sections(lines: list[str]) -> Iterator[str]:
    """The lines, with a blank one after each, without headings that nothing stands under."""
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
    return "\n".join(drop_empty_sections(lines)).strip() + "\n"


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
