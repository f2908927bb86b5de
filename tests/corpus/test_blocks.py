"""Text to blocks: what is in them, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Workspace

from attnopt import settings as params
from attnopt.core.errors import UserError
from attnopt.corpus import blocks as corpus
from attnopt.corpus.sources import HELD_OUT, documents, open_sources
from attnopt.teacher import model as teacher


def test_blocks_hold_the_documents_in_order_each_with_its_end(workspace: Workspace) -> None:
    workspace.run("tokenize")
    _, tokenizer = teacher.load_teacher(params.load_settings().teacher, model=False)
    manifest = json.loads(Path("data/corpus/manifest.json").read_text())
    for split, counts in manifest["splits"].items():
        text = Path(f"text/{split}.txt").read_text()
        ids = [*tokenizer.encode(text), tokenizer.eos_token_id]
        blocks = corpus.read_blocks(Path("data/corpus"), split)
        assert blocks.dtype == np.uint16
        assert blocks.shape == (counts["blocks"], 32)
        assert blocks.flatten().tolist() == ids[: blocks.size]
        assert counts["tokens"] == len(ids)
        assert counts["words"] == len(text.split()) + text.count("\n")
        assert counts["bytes"] == len(text.encode())


def test_text_can_be_thinned_out_evenly(workspace: Workspace) -> None:
    workspace.run("tokenize")
    whole = corpus.read_blocks(Path("data/corpus"), "train").tolist()
    workspace.set(corpus={"max_tokens": 500, "max_eval_tokens": 64})
    workspace.run("tokenize")
    thinned = corpus.read_blocks(Path("data/corpus"), "train").tolist()
    assert len(thinned) == 500 // 32
    assert [thinned[0], thinned[-1]] == [whole[0], whole[-1]]
    assert corpus.read_blocks(Path("data/corpus"), "test").shape == (2, 32)


def test_longer_blocks_are_contiguous_text_of_the_train_split_and_thinned_alike(workspace: Workspace) -> None:
    workspace.set(corpus={"long_block": 50, "long_across": True})
    workspace.run("tokenize")
    short, long = (corpus.read_blocks(Path("data/corpus"), split).flatten() for split in ("train", corpus.LONG))
    assert np.array_equal(short[:9000], long[:9000])
    assert corpus.read_manifest(Path("data/corpus")).long_block == 50
    workspace.set(corpus={"max_tokens": 500})
    workspace.run("tokenize")
    assert corpus.read_all_blocks(Path("data/corpus"))[corpus.LONG].shape == (10, 50)
    workspace.set(corpus={"long_block": 501})
    with pytest.raises(UserError, match=r"corpus.long_block: 500 training tokens do not fill one block of 501"):
        workspace.run("tokenize")
    workspace.set(corpus={"long_block": None})
    workspace.run("tokenize")
    assert corpus.LONG not in corpus.read_all_blocks(Path("data/corpus"))


def test_longer_blocks_beyond_the_teachers_positions_are_refused(workspace: Workspace) -> None:
    workspace.set(corpus={"long_block": 65})
    workspace.run("tokenize")
    with pytest.raises(UserError, match=r"corpus.long_block: 65 exceeds the teacher's 64 positions"):
        workspace.run("cache-logits")


def test_a_damaged_split_is_named(workspace: Workspace) -> None:
    workspace.run("tokenize")
    path = Path("data/corpus/train.npy")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"data/corpus/train.npy is damaged .*run `dvc repro -f -s tokenize`"):
        corpus.read_blocks(Path("data/corpus"), "train")
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"data/corpus/train.npy is damaged"):
        corpus.read_blocks(Path("data/corpus"), "train")
    np.save(path, np.zeros((3, 32), np.uint16))
    with pytest.raises(UserError, match=r"train.npy holds blocks \(3, 32\), its manifest says"):
        corpus.read_blocks(Path("data/corpus"), "train")


def test_the_teacher_writes_the_training_text_and_none_of_what_is_held_out(workspace: Workspace) -> None:
    workspace.run("tokenize")
    held_out = [corpus.read_blocks(Path("data/corpus"), split).tolist() for split in HELD_OUT]
    real = json.loads(Path("data/corpus/manifest.json").read_text())
    Path("text/train.txt").unlink()
    workspace.set(corpus={"source": "teacher", "held_out": "files", "max_tokens": 1000})
    workspace.run("tokenize", "cache-logits", "distill none")
    assert [corpus.read_blocks(Path("data/corpus"), split).tolist() for split in HELD_OUT] == held_out
    train = corpus.read_blocks(Path("data/corpus"), "train")
    assert train.shape == (31, 32)
    assert train.dtype == np.uint16
    manifest = json.loads(Path("data/corpus/manifest.json").read_text())
    assert (manifest["source"], manifest["splits"]["train"]["tokens"]) == ("teacher", 31 * 32)
    sampled = corpus.read_documents(Path("data/corpus"), "train")
    assert np.array_equal(sampled.tokens, train.ravel())
    assert len(sampled) == manifest["splits"]["train"]["documents"] >= 31
    assert max(sampled.sizes) <= 32
    assert all(part[-1] == 0 or end % 32 == 0 for part, end in zip(sampled, sampled.ends, strict=True))
    assert not any((part[:-1] == 0).any() for part in sampled)
    workspace.set(corpus={"seed": 1})
    workspace.run("tokenize")
    other = json.loads(Path("data/corpus/manifest.json").read_text())
    assert len({m["sha256"] for m in (real, manifest, other)}) == 3
    Path("text/valid.txt").unlink()
    with pytest.raises(UserError, match=r"valid.txt is missing; valid.txt and test.txt are needed") as caught:
        open_sources(params.load_settings().corpus)
    assert "\n" not in str(caught.value)


def test_documents_are_kept_whole_however_few_blocks_are(workspace: Workspace) -> None:
    articles = [
        f" = {name} = \n \n {name} found the old house . \n" * n for name, n in (("Anna", 1), ("Bela", 9), ("Dora", 30))
    ]
    Path("text/test.txt").write_text("".join(articles))
    workspace.set(corpus={"max_tokens": 64, "max_eval_tokens": 64})
    workspace.run("tokenize")
    _, tokenizer = teacher.load_teacher(params.load_settings().teacher, model=False)
    found = {split: list(documents(source)) for split, source in open_sources(params.load_settings().corpus).items()}
    for split, texts in found.items():
        kept = corpus.read_documents(Path("data/corpus"), split)
        assert [part.tolist() for part in kept] == [[*tokenizer.encode(t), tokenizer.eos_token_id] for t in texts]
        assert kept[len(kept) - 1].tolist() == [*tokenizer.encode(texts[-1]), tokenizer.eos_token_id]
        assert kept.sizes.sum() == len(kept.tokens) == corpus.read_manifest(Path("data/corpus")).splits[split].tokens
        assert isinstance(kept.tokens, np.memmap)
    assert len(found["test"]) == 40


@pytest.mark.parametrize(("file", "what"), [("tokens", "tokens"), ("ends", "documents")])
def test_damaged_documents_are_named(workspace: Workspace, file: str, what: str) -> None:
    workspace.run("tokenize")
    path = Path(f"data/corpus/test.{file}.npy")
    np.save(path, np.zeros(3, np.int64))
    with pytest.raises(UserError, match=rf"test.{file}.npy holds {what} \(3,\), its manifest says \(\d+,\)"):
        corpus.read_documents(Path("data/corpus"), "test")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=rf"data/corpus/test.{file}.npy is damaged .*run `dvc repro -f -s tokenize`"):
        corpus.read_documents(Path("data/corpus"), "test")
    path.unlink()
    with pytest.raises(UserError, match=rf"test.{file}.npy is missing: run `dvc repro tokenize` first"):
        corpus.read_documents(Path("data/corpus"), "test")


def test_a_corpus_smaller_than_a_block_is_refused_and_nothing_is_written(workspace: Workspace) -> None:
    (workspace.path / "text" / "test.txt").write_text("too short")
    with pytest.raises(UserError, match=r"the test split has \d+ tokens, fewer than one block of 32"):
        workspace.run("tokenize")
    assert not list(Path().glob("data/*"))
