"""Documents from files and from the hub, their split, and what is refused."""

from collections.abc import Iterable

import pytest
from conftest import SHARED, Workspace

from attnopt import settings as params
from attnopt.core.errors import UserError
from attnopt.corpus.params import CorpusParams
from attnopt.corpus.sources import Source, articles, documents, open_sources, split_documents, whole_lines


def whole_articles(chunks: Iterable[str]) -> list[str]:
    return list(documents(Source(lambda _: articles(chunks))))


def read_all(params: CorpusParams) -> dict[str, list[str]]:
    return {split: list(documents(source)) for split, source in open_sources(params).items()}


def test_wikitext_falls_into_articles_and_loses_nothing() -> None:
    text = " \n = One = \n \n Some text . \n = = Part = = \n more \n = Two = \n end \n"
    parts = whole_articles([text])
    assert [p.strip().split("\n")[0] for p in parts] == ["= One = ", "= Two = "]
    assert "".join(parts) == text
    assert whole_articles(["plain text\n"]) == ["plain text\n"]
    assert whole_articles(text.splitlines(keepends=True)) == parts


def test_chunks_end_where_lines_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnopt.corpus.sources.CHUNK", 7)
    text = " = One = \nab\ncd\n" * 3 + "a line that is longer\n" + "end"
    chunks = list(whole_lines(text[i : i + 4] for i in range(0, len(text), 4)))
    assert "".join(chunks) == text
    assert sum(chunk.endswith("\n") for chunk in chunks) > 3
    assert whole_articles(whole_lines([text])) == whole_articles([text])


def test_documents_split_eight_one_one_in_a_fixed_order() -> None:
    splits = split_documents([str(i) for i in range(20)])
    assert splits["valid"] == ["8", "18"]
    assert splits["test"] == ["9", "19"]
    assert len(splits["train"]) == 16


@pytest.mark.skipif(not (SHARED / "wikitext-2").is_dir(), reason="the official WikiText-2 is not beside the project")
def test_the_official_wikitext_2_has_its_published_word_counts() -> None:
    found = read_all(CorpusParams(source="files", path=str(SHARED / "wikitext-2")))
    words = {split: sum(len(t.split()) + t.count("\n") for t in texts) for split, texts in found.items()}
    assert words == {"train": 2_088_628, "valid": 217_646, "test": 245_569}


def refused(expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        read_all(params.load_settings().corpus)
    assert "\n" not in str(caught.value)


def test_bad_files_are_named(workspace: Workspace) -> None:
    train = workspace.path / "text" / "train.txt"
    train.write_bytes(b"good \xff bad")
    refused(r"train.txt is not UTF-8: byte 5 is 0xff")
    train.write_text(" \n \n")
    refused("the train split is empty")
    train.unlink()
    refused(r"train.txt is missing; train.txt, valid.txt and test.txt are needed")
    workspace.set(corpus={"path": "nowhere"})
    refused("corpus.path: nowhere is no folder")


def test_a_hub_out_of_reach_says_what_to_do(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the hub\nsecond line")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    workspace.set(corpus={"source": "hub", "id": "Salesforce/wikitext", "config": "wikitext-2-raw-v1"})
    refused("Salesforce/wikitext cannot be loaded .*set corpus.source to files")


def test_a_hub_dataset_of_rows_is_read(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset, IterableDatasetDict

    rows = {"train": [" = A = \n", " text \n", " = B = \n"], "validation": ["v"], "test": ["t"]}
    found = IterableDatasetDict(
        {split: Dataset.from_dict({"text": texts}).to_iterable_dataset() for split, texts in rows.items()}
    )
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: found)
    workspace.set(corpus={"source": "hub", "id": "x/y"})
    assert read_all(params.load_settings().corpus) == {
        "train": [" = A = \n text \n", " = B = \n"],
        "valid": ["v"],
        "test": ["t"],
    }
    workspace.set(corpus={"column": "body"})
    refused("corpus.column: x/y has no column 'body'")
    del found["test"]
    workspace.set(corpus={"column": "text"})
    refused("corpus.id: x/y has no test split")
