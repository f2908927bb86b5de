"""Text as a stream: the same ids as when all of it was held, within bounds, resumed to the bit, read no further."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Workspace, sentences

from attnopt import settings
from attnopt.core.errors import RunError, UserError
from attnopt.core.files import sha256
from attnopt.corpus import blocks, encode, sources, write
from attnopt.corpus.encode import Encoder
from attnopt.corpus.params import CorpusParams
from attnopt.corpus.sources import Segment, Source
from attnopt.teacher.model import load_teacher
from attnopt.teacher.params import TeacherParams

FROZEN = {  # of all arrays of data/corpus as the code wrote them that held every document and id in lists
    "be2724f47a6222dc69b9efa98a09f2fe9aaec5ffeb5d41c720c73089ef95b251": {
        "block": 512, "long_block": 1024, "long_across": True, "max_tokens": 100_000, "max_eval_tokens": 8192,
    },
    "21e5f4a37e1a24889fddb611d190947783d8473e70ad19d6f1ffe5f8cfb95201": {
        "block": 1024, "max_tokens": 102_400, "max_eval_tokens": 12_288,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def bundled() -> Any:
    return load_teacher(TeacherParams(), model=False)[1]


@pytest.fixture
def tokenizer(tiny: Path) -> Any:
    return load_teacher(TeacherParams(source="path", path=str(tiny / "teacher")), model=False)[1]


def arrays(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.npy"))}


def digest(folder: Path) -> str:
    return sha256(*(part for name, content in arrays(folder).items() for part in (name, content)))


@pytest.mark.parametrize("expected", FROZEN)
def test_the_samples_arrays_are_what_they_were(expected: str, bundled: Any, tmp_path: Path) -> None:
    write.write_corpus(CorpusParams(**FROZEN[expected]), bundled, tmp_path / "corpus")
    assert digest(tmp_path / "corpus") == expected


def test_a_long_document_in_pieces_has_the_ids_that_it_has_whole(
    tokenizer: Any, bundled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = sentences(3, 400).replace(" and ", " '' \n\n  and\t1234567 ").replace("river", "rivière — 河 \u00a0 ")
    whole = {t: t([text], add_special_tokens=False, verbose=False)["input_ids"][0] for t in (tokenizer, bundled)}
    monkeypatch.setattr(encode, "PIECE", 600)
    monkeypatch.setattr(encode, "WINDOW", 100)
    segments = [(text[i : i + 271], False) for i in range(0, len(text), 271)]
    for some in (segments, [(text, False)]):
        for tok, ids in whole.items():
            encoder = Encoder(tok)
            found = list(encode.encode_pieces(encode.cut_pieces([*some, ("", True)], encoder), encoder))
            assert len(found) > len(text) / 700
            assert max(len(piece.text) for piece, _ in found) < 700
            assert np.concatenate([part for _, part in found]).tolist() == [*ids, tok.eos_token_id]


def test_a_document_that_no_cut_leaves_as_it_is_stays_whole(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "PIECE", 600)
    monkeypatch.setattr(encode, "WINDOW", 100)
    monkeypatch.setattr(Encoder, "parts_at", lambda *_: False)
    text = sentences(3, 100)
    assert [p.text for p in encode.cut_pieces([(text[:3000], False), (text[3000:], True)], Encoder(tokenizer))] == [
        text
    ]


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def shards(killed_at: int | None = None) -> Source:
    """Two shards of 30 documents, one of them long; reading the document `killed_at` of all ends the process."""

    def read(shard: int) -> Iterator[Segment]:
        for i in range(30 * shard, 30 * shard + 30):
            if i == killed_at:
                raise Killed
            yield sentences(i, 200 if i == 7 else 5), True

    return Source(read, 2)


@pytest.mark.parametrize("killed_at", [3, 8, 25, 30, 31, 59])
def test_what_was_killed_goes_on_to_the_same_bytes(
    killed_at: int, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PIECE": 600, "WINDOW": 50, "BATCH": 1500}.items():
        monkeypatch.setattr(encode, name, value)
    monkeypatch.setattr(write, "KEPT_EVERY", 2000)
    encoder = Encoder(tokenizer)
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    write.write_split(shards(), encoder, tmp_path / "whole", "train")
    with pytest.raises(Killed):
        write.write_split(shards(killed_at), encoder, tmp_path / "killed", "train")
    with (tmp_path / "killed" / "train.tokens.npy").open("ab") as file:
        file.write(b"what came after the last that was kept")
    encoded: list[str] = []
    plain = Encoder.__call__

    def watched(self: Encoder, texts: list[str]) -> list[Any]:
        encoded.extend(texts)
        return plain(self, texts)

    monkeypatch.setattr(Encoder, "__call__", watched)
    write.write_split(shards(), encoder, tmp_path / "killed", "train")
    assert arrays(tmp_path / "killed") == arrays(tmp_path / "whole")
    if killed_at > 30:
        assert not any(sentences(i, 5) in encoded for i in range(7))
    np.load(tmp_path / "killed" / "train.tokens.npy")


def test_text_that_changed_in_between_is_read_anew(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(write, "KEPT_EVERY", 2000)
    monkeypatch.setattr(encode, "BATCH", 1500)
    encoder = Encoder(tokenizer)
    with pytest.raises(Killed):
        write.write_split(shards(25), encoder, tmp_path, "train")
    other = Source(lambda _: ((sentences(99 - i, 5), True) for i in range(30)))
    write.write_split(other, encoder, tmp_path, "train")
    assert "the text has changed since; starting anew" in capsys.readouterr().err
    tokens = np.load(tmp_path / "train.tokens.npy").tolist()
    assert tokens[: len(ids := tokenizer.encode(sentences(99, 5)))] == ids
    assert len(np.load(tmp_path / "train.ends.npy")) == 30


@pytest.mark.parametrize("now", [[9, 1], [0, 1, 2]], ids=["changed", "grown"])
def test_a_split_that_was_done_is_not_taken_for_other_text(now: list[int], tokenizer: Any, tmp_path: Path) -> None:
    encoder = Encoder(tokenizer)
    for some in ([0, 1], [0, 1], now):
        source = Source(lambda _, some=some: ((sentences(i, 5), True) for i in some))
        write.write_split(source, encoder, tmp_path, "train")
        expected = [token for i in some for token in (*tokenizer.encode(sentences(i, 5)), encoder.end)]
        assert np.load(tmp_path / "train.tokens.npy").tolist() == expected


def test_reading_stops_where_there_are_tokens_enough(tokenizer: Any, tmp_path: Path) -> None:
    def read(_: int) -> Iterator[Segment]:
        for i in itertools.count():
            assert i < 12, "read past what was wanted"
            yield sentences(i, 20), True

    sizes = [len(tokenizer.encode(sentences(i, 20))) + 1 for i in range(10)]
    room = sum(sizes) - 5
    reached = write.write_split(Source(read), Encoder(tokenizer), tmp_path, "train", room)
    assert (reached.tokens, reached.documents) == (room, 10)
    assert np.load(tmp_path / "train.ends.npy").tolist() == [*np.cumsum(sizes[:9]), room]


def test_sizes_are_those_of_the_documents(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "PIECE", 600)
    monkeypatch.setattr(encode, "WINDOW", 50)
    texts = [sentences(i, 30 if i == 4 else 5) for i in range(9)]
    sizes = list(encode.document_sizes(sources.source_of(texts), Encoder(tokenizer)))
    assert sizes == [len(tokenizer.encode(text)) + 1 for text in texts]


@pytest.mark.parametrize(("tokens", "expected"), [(2, [2]), (3, [3]), (8, [3, 7]), (99, [3, 7, 12])])
def test_the_first_documents_are_whole_but_for_a_first_that_is_too_long(tokens: int, expected: list[int]) -> None:
    first = blocks.Documents(np.arange(12), np.array([3, 7, 12])).first(tokens)
    assert first.ends.tolist() == expected
    assert first.tokens.tolist() == list(range(expected[-1]))
    assert len(blocks.Documents(np.zeros(0), np.zeros(0, dtype=int)).first(5)) == 0


def test_max_tokens_stops_or_spreads(workspace: Workspace) -> None:
    workspace.run("tokenize")
    whole = blocks.read_documents(Path("data/corpus"), "train").tokens.tolist()
    workspace.set(corpus={"max_tokens": 330, "take": "first"})
    workspace.run("tokenize")
    assert blocks.read_documents(Path("data/corpus"), "train").tokens.tolist() == whole[:330]
    assert blocks.read_blocks(Path("data/corpus"), "train").ravel().tolist() == whole[:320]
    assert [CorpusParams(source="hub", id="x", max_tokens=n).stops for n in (None, 9)] == [False, True]
    assert [CorpusParams(max_tokens=9, take=how).stops for how in (None, "first", "spread")] == [False, True, False]


def test_longer_blocks_are_of_one_document_each(workspace: Workspace) -> None:
    texts = [f" = {i} = \n" + sentences(i, 3 + i % 9) for i in range(40)]
    Path("text/train.txt").write_text("".join(texts))
    workspace.set(corpus={"long_block": 64})
    workspace.run("tokenize")
    long = blocks.read_blocks(Path("data/corpus"), blocks.LONG).tolist()
    documents = blocks.read_documents(Path("data/corpus"), "train")
    assert long == [d[i : i + 64].tolist() for d in documents for i in range(0, len(d) - 63, 64)]
    assert len(long) > 40
    workspace.set(corpus={"long_block": 2000})
    with pytest.raises(
        UserError, match=r"no training document has 2000 tokens, the longest has \d+; corpus.long_across"
    ):
        workspace.run("tokenize")


def test_ids_beyond_65535_take_32_bits(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.add_tokens([f"word{i}" for i in range(70_000)])
    encoder = Encoder(tokenizer)
    assert encoder.dtype == np.int32
    write.write_split(Source(lambda _: iter([("word69999", True)])), encoder, tmp_path, "train")
    assert np.load(tmp_path / "train.tokens.npy").tolist() == [*tokenizer.encode("word69999"), tokenizer.eos_token_id]
    assert np.load(tmp_path / "train.tokens.npy").max() > 2**16


@pytest.fixture
def hub(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A data set on disk as a hub has it: a folder of parquet files, two of the train split."""
    from datasets import Dataset

    monkeypatch.setattr("attnopt.corpus.encode.BATCH", 2000)
    Path("set").mkdir()
    for name, count in {"train-00000-of-00002": 60, "train-00001-of-00002": 30, "validation": 9, "test": 9}.items():
        rows = {"body": [sentences(i + count, 4) for i in range(count)]}
        Dataset.from_dict(rows).to_parquet(f"set/{name}.parquet")
    workspace.set(corpus={"source": "hub", "id": "set", "path": None, "column": "body"})
    return workspace


def test_a_hubs_data_set_is_streamed_shard_by_shard(hub: Workspace) -> None:
    opened = sources.open_sources(settings.load_settings().corpus)
    assert (opened["train"].shards, opened["test"].shards) == (2, 1)
    hub.run("tokenize")
    rows = [sentences(i + n, 4) for n in (60, 30) for i in range(n)]
    _, tokenizer = load_teacher(settings.load_settings().teacher, model=False)
    documents = blocks.read_documents(Path("data/corpus"), "train")
    assert [d.tolist() for d in documents] == [[*tokenizer.encode(t), tokenizer.eos_token_id] for t in rows]
    hub.set(corpus={"max_tokens": 700})
    hub.run("tokenize")
    assert len(blocks.read_documents(Path("data/corpus"), "train").tokens) == 700
    assert blocks.read_blocks(Path("data/corpus"), "train").shape == (700 // 32, 32)


def test_a_hub_that_breaks_off_is_one_line_and_goes_on(hub: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import IterableDataset

    hub.run("tokenize")
    whole = arrays(Path("data/corpus"))
    monkeypatch.setattr(write, "KEPT_EVERY", 2000)
    plain = IterableDataset.__iter__

    def broken(self: IterableDataset) -> Iterator[Any]:
        for i, row in enumerate(plain(self)):
            if i == 55:  # behind those that are looked at first
                raise ConnectionError("reset by peer\nsecond line")
            yield row

    with monkeypatch.context() as patched:
        patched.setattr(IterableDataset, "__iter__", broken)
        with pytest.raises(RunError, match=r"^set broke off \(reset by peer\); run again to go on from there$"):
            hub.run("tokenize")
    assert list(Path(".checkpoints").glob("*/corpus/train.state.json"))
    hub.run("tokenize")
    assert arrays(Path("data/corpus")) == whole
    assert not list(Path(".checkpoints").glob("*/corpus"))


MEASURE = """
import resource, sys
from pathlib import Path
from attnopt.corpus import write
from attnopt.corpus.encode import Encoder
from attnopt.corpus.sources import _read_file, Source
from attnopt.teacher.model import load_teacher
from attnopt.teacher.params import TeacherParams
encoder = Encoder(load_teacher(TeacherParams(), model=False)[1])
write.write_split(Source(lambda i: _read_file(Path(sys.argv[1]), i)), encoder, Path(sys.argv[2]), "train")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """One document of 4 and of 12 MB: held whole, its encoding alone would take 100 bytes a character."""
    peaks = []
    for size in (4, 12):
        text, folder = tmp_path / f"{size}.txt", tmp_path / str(size)
        folder.mkdir()
        text.write_text((sentences(size, 2000) * size * 20)[: size * 2**20])
        run = [sys.executable, "-c", MEASURE, str(text), str(folder)]
        peaks.append(int(subprocess.run(run, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 60, peaks
