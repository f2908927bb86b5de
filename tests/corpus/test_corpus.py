"""Text to blocks: the three sources, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED, Workspace

from attnopt import settings as params
from attnopt.core.errors import UserError
from attnopt.corpus import blocks as corpus
from attnopt.corpus import wikipedia as wiki
from attnopt.corpus.params import CorpusParams
from attnopt.corpus.sources import HELD_OUT, articles, documents, split_documents
from attnopt.teacher import model as teacher
from attnopt.teacher import sampling


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


def test_wikitext_falls_into_articles_and_loses_nothing() -> None:
    text = " \n = One = \n \n Some text . \n = = Part = = \n more \n = Two = \n end \n"
    parts = articles(text)
    assert [p.strip().split("\n")[0] for p in parts] == ["= One = ", "= Two = "]
    assert "".join(parts) == text
    assert articles("plain text\n") == ["plain text\n"]


def test_documents_split_eight_one_one_in_a_fixed_order() -> None:
    splits = split_documents([str(i) for i in range(20)])
    assert splits["valid"] == ["8", "18"]
    assert splits["test"] == ["9", "19"]
    assert len(splits["train"]) == 16


def test_the_sample_has_its_articles_and_no_markup() -> None:
    articles = list(wiki.sample_articles())
    assert len(articles) == 107
    text = "\n".join(body for _, body in articles)
    assert 2_400_000 < len(text.encode()) < 3_200_000
    assert not re.search(r"\[\[|\{\{|\{\||'''|<ref|https?://", text)
    assert all(body.startswith(f"= {title} =") for title, body in articles)
    lines = [line for line in text.split("\n") if line and not line.startswith("=")]
    assert all(len(line.split()) >= 6 for line in lines)


@pytest.mark.slow
def test_the_bundled_articles_are_what_the_tool_makes_of_the_dump() -> None:
    pytest.importorskip("gensim")
    from attnopt.tools.enwiki import dump_articles, dump_path

    assert list(dump_articles(dump_path())) == wiki.sample_articles()


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


def test_wikitext_is_turned_back_into_prose() -> None:
    text = (
        " = Title = \n \n The role @-@ playing game ( 1 @,@ 000 copies ) sold well . It 's <unk> here . "
        'He said " so it is " and left . \n'
    )
    assert wiki.undo_wikitext(text) == (
        '= Title =\n\nThe role-playing game (1,000 copies) sold well. He said "so it is" and left.\n'
    )


@pytest.mark.skipif(not (SHARED / "wikitext-2").is_dir(), reason="the official WikiText-2 is not beside the project")
def test_the_official_wikitext_2_has_its_published_word_counts() -> None:
    found = documents(CorpusParams(source="files", path=str(SHARED / "wikitext-2")))
    words = {split: sum(len(t.split()) + t.count("\n") for t in texts) for split, texts in found.items()}
    assert words == {"train": 2_088_628, "valid": 217_646, "test": 245_569}


@torch.no_grad()
def test_a_stream_is_drawn_token_by_token_from_the_whole_distribution(workspace: Workspace) -> None:
    """Against sampling without a cache, token by token."""
    model, _ = teacher.load_teacher(params.load_settings().teacher)
    drawn = sampling.sample_stream(model, 0, 20, 3, 250, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    ids = torch.zeros(3, 1, dtype=torch.int64)
    for _ in range(19):
        p = model(ids, use_cache=False).logits[:, -1].softmax(-1)[:, :250]
        ids = torch.cat([ids, (p / p.sum(-1, keepdim=True)).multinomial(1, generator=generator)], 1)
    assert torch.equal(drawn, ids)
    assert drawn.max() < 250


def test_sampled_blocks_are_cut_from_streams_and_depend_on_the_seed_alone(workspace: Workspace) -> None:
    model, tokenizer = teacher.load_teacher(params.load_settings().teacher)
    found = sampling.sample_blocks(model, tokenizer, 16, 11, seed=1, batch=2)
    assert found.shape == (11, 16)
    assert (found[::4, 0] == tokenizer.eos_token_id).all(), "64 positions hold four blocks of a stream"
    assert len({tuple(block) for block in found.tolist()}) == 11
    assert np.array_equal(found, sampling.sample_blocks(model, tokenizer, 16, 11, seed=1, batch=2))
    assert not np.array_equal(found, sampling.sample_blocks(model, tokenizer, 16, 11, seed=2, batch=2))


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
    workspace.set(corpus={"seed": 1})
    workspace.run("tokenize")
    other = json.loads(Path("data/corpus/manifest.json").read_text())
    assert len({m["sha256"] for m in (real, manifest, other)}) == 3
    Path("text/valid.txt").unlink()
    refused("valid.txt is missing; valid.txt and test.txt are needed")


def refused(expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        documents(params.load_settings().corpus)
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


def test_a_corpus_smaller_than_a_block_is_refused_and_nothing_is_written(workspace: Workspace) -> None:
    (workspace.path / "text" / "test.txt").write_text("too short")
    with pytest.raises(UserError, match=r"the test split has \d+ tokens, fewer than one block of 32"):
        workspace.run("tokenize")
    assert not list(Path("data").iterdir())


def test_a_hub_out_of_reach_says_what_to_do(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the hub\nsecond line")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    workspace.set(corpus={"source": "hub", "id": "Salesforce/wikitext", "config": "wikitext-2-raw-v1"})
    refused("Salesforce/wikitext cannot be loaded .*set corpus.source to files")


def test_a_hub_dataset_of_rows_is_read(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset, DatasetDict

    rows = {"train": [" = A = \n", " text \n", " = B = \n"], "validation": ["v"], "test": ["t"]}
    found = DatasetDict({split: Dataset.from_dict({"text": texts}) for split, texts in rows.items()})
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: found)
    workspace.set(corpus={"source": "hub", "id": "x/y"})
    assert documents(params.load_settings().corpus) == {
        "train": [" = A = \n text \n", " = B = \n"],
        "valid": ["v"],
        "test": ["t"],
    }
    workspace.set(corpus={"column": "body"})
    refused("corpus.column: x/y has no column 'body'")
    del found["test"]
    workspace.set(corpus={"column": "text"})
    refused("corpus.id: x/y has no test split")
