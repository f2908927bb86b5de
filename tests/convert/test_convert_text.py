"""Files of text as documents of three splits, and the last lines' parts."""

from pathlib import Path

import pytest

from attnopt.convert.clock import Clock
from attnopt.convert.findings import layer_map
from attnopt.convert.study import chosen
from attnopt.convert.text import read_texts, write_splits
from attnopt.corpus.params import CorpusParams
from attnopt.corpus.sources import documents, open_sources


def test_files_become_documents_of_three_splits(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(5):
        (tmp_path / "in" / f"{i}.txt").write_text(f"text {i}\n = no title = \n")
    write_splits(read_texts(tmp_path / "in"), tmp_path / "out")
    sources = open_sources(CorpusParams(source="files", path=str(tmp_path / "out")))
    found = {split: list(documents(source)) for split, source in sources.items()}
    assert {split: len(texts) for split, texts in found.items()} == {"train": 3, "valid": 1, "test": 1}
    assert "text 2" in found["valid"][0]
    assert "text 3" in found["test"][0]


def test_a_single_file_is_cut_between_paragraphs(tmp_path: Path) -> None:
    text = "".join(f"paragraph {i} of it\n\n" for i in range(40))
    (tmp_path / "book.md").write_text(text)
    parts = [part for found in read_texts(tmp_path).values() for _, part in found]
    assert len(parts) == 4
    assert all(part.startswith("paragraph") for part in parts)
    assert sorted("".join(parts).split("\n\n")) == sorted(text.split("\n\n"))


@pytest.mark.parametrize(("state", "third"), [(0.0625, "window_quarter"), (0.125, "window_quarter"), (0.25, "kv_int8")])
def test_what_is_searched_can_fill_the_budget(state: float, third: str) -> None:
    shares = {"window": state, "window_half": state / 2, "window_quarter": state / 4, "kv_int4": 0.148, "kv_int8": 0.27}
    assert chosen(state, shares) == ["window_half", third, "kv_int4"]
    assert chosen(state, {"window": state}) == ["window"]


def test_layers_of_a_kind_are_told_in_one() -> None:
    assert layer_map(["window", "a", "a", "a", "window"]) == "layers 0 window, 1-3 a, 4 window"


def test_the_time_left_follows_what_was_taken() -> None:
    clock = Clock({"a": 1e-9, "b": 100.0}, 2.0)
    assert clock.seconds_left == pytest.approx(200)
    with clock.timed("a"):
        pass
    assert clock.seconds_left > 200
