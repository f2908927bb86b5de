"""The teacher's outputs in every form: to disk and back, resumed, checked, and distilled from."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Workspace

from attnopt import settings as params
from attnopt.core.checkpoint import checkpoint_root
from attnopt.core.errors import UserError
from attnopt.corpus import blocks as corpus
from attnopt.corpus.sources import SPLITS
from attnopt.targets import forms as logits
from attnopt.targets import store as cache
from attnopt.targets.dataset import load_dataset
from attnopt.targets.targets import DenseTargets, SparseTargets
from attnopt.teacher import model as teacher

FORMS = ["dense", "topk", "sampled"]
DEVICE = torch.device("cpu")


@pytest.fixture
def tokenized(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """With a cache of many parts."""
    monkeypatch.setattr(logits.Encoder, "part", 30)
    workspace.set(corpus={"max_tokens": 3200, "max_eval_tokens": 640})
    workspace.run("tokenize")
    return workspace


def manifest() -> dict:
    return json.loads(Path("data/teacher/manifest.json").read_text())


def world(form: logits.Form, count: int = 3) -> tuple[torch.Tensor, list[cache.Block]]:
    """Some blocks' exact log-probabilities, and what a form keeps of them."""
    model, _ = teacher.load_teacher(params.load_settings().teacher)
    blocks = corpus.read_blocks(Path("data/corpus"), "train")[:count]
    with torch.no_grad():
        log_p = model(torch.from_numpy(blocks.astype(np.int64))).logits[:, :-1].flatten(0, 1).log_softmax(-1)
    return log_p, list(logits.Encoder(model, form, blocks)(range(count)))


@torch.no_grad()
def test_cached_hidden_states_give_the_distributions_back(tokenized: Workspace) -> None:
    tokenized.run("cache-logits")
    loaded, _ = load_dataset(params.load_settings().teacher)
    rows, ids = np.array([31, 0, 99]), torch.zeros(3, 32, dtype=torch.int64)
    log_q = loaded.targets("train", rows, ids)[:].logits.log_softmax(-1)
    blocks = torch.from_numpy(loaded.blocks["train"][rows].astype(np.int64))
    log_p = loaded.teacher(blocks).logits[:, :-1].flatten(0, 1).log_softmax(-1)
    assert (log_p.exp() * (log_p - log_q)).sum(-1).abs().max() < 1e-5
    assert 64 <= manifest()["splits"]["train"]["bytes_per_token"] < 66


def test_dense_is_the_distribution_in_float16(tokenized: Workspace) -> None:
    form = logits.Dense(300)
    log_p, blocks = world(form)
    targets = form.decode(blocks, DEVICE)
    assert isinstance(targets, DenseTargets)
    assert targets.logits.dtype == torch.float16
    torch.testing.assert_close(targets.logits.float(), log_p, rtol=1e-3, atol=0)


def test_topk_keeps_the_likeliest_and_what_is_left(tokenized: Workspace) -> None:
    form = logits.TopK(5, 300)
    log_p, blocks = world(form)
    targets = form.decode(blocks, DEVICE)
    p, ids = log_p.exp().topk(5)
    torch.testing.assert_close(targets.p, p, rtol=2e-3, atol=1e-6)
    assert torch.equal(targets.ids, ids)
    torch.testing.assert_close(targets.tail, 1 - p.sum(-1), rtol=2e-3, atol=1e-6)
    assert blocks[0]["top"].itemsize == form.bytes == 22


def counts_of(targets: SparseTargets, draws: int, vocab: int) -> torch.Tensor:
    dense = torch.zeros(len(targets), vocab)
    return dense.scatter_add_(-1, targets.ids, targets.p * draws)


def test_sampled_counts_draws_from_the_distribution(tokenized: Workspace) -> None:
    form = logits.Sampled(5000, 300)
    log_p, blocks = world(form)
    targets = form.decode(blocks, DEVICE)
    counts = counts_of(targets, 5000, 300)
    assert torch.equal(counts.sum(-1).round(), torch.full((len(counts),), 5000.0))
    expected = 5000 * log_p.exp()
    error = (counts - expected) / expected.clamp(min=1).sqrt()
    assert error.abs().mean() < 1
    assert error.abs().max() < 7
    torch.testing.assert_close(targets.entropy, -(log_p.exp() * log_p).sum(-1), rtol=2e-3, atol=1e-3)


def test_sampled_packs_each_position_without_repeats(tokenized: Workspace) -> None:
    form = logits.Sampled(9, 300)
    _, blocks = world(form)
    for block in blocks:
        ends = np.cumsum(block["rows"]["different"])
        for entries in np.split(block["entries"], ends[:-1]):
            assert len(set(entries["id"])) == len(entries)
            assert entries["count"].sum() == 9
    assert blocks[0]["entries"].itemsize == 3
    together = counts_of(form.decode(blocks, DEVICE), 9, 300)
    alone = torch.cat([counts_of(form.decode([block], DEVICE), 9, 300) for block in blocks])
    torch.testing.assert_close(together, alone)


def test_draws_do_not_depend_on_the_cut(tokenized: Workspace) -> None:
    model, _ = teacher.load_teacher(params.load_settings().teacher)
    encoder = logits.Encoder(model, logits.Sampled(9, 300), corpus.read_blocks(Path("data/corpus"), "train")[:6])
    whole, pieces = list(encoder(range(6))), [*encoder(range(2)), *encoder(range(2, 6))]
    assert all(np.array_equal(a["entries"], b["entries"]) for a, b in zip(whole, pieces, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_distils_towards_the_teacher(tokenized: Workspace, form: str) -> None:
    tokenized.set(teacher={"logits": form, "topk": 8, "draws": 16}, distill={"steps": 60, "lr": 0.01})
    tokenized.run("cache-logits", "distill none")
    found = json.loads(Path("results/distill/none/0/record.json").read_text())
    assert found["kl_end"] < 0.85 * found["kl_start"]
    entry = manifest()["splits"]
    assert [entry[split]["form"] for split in SPLITS] == [form, "hidden", "hidden"]
    assert entry["train"]["bytes_per_token"] < {"dense": 601, "topk": 35, "sampled": 50}[form]


def test_an_interrupted_cache_goes_on_where_it_was(tokenized: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, done = logits.Encoder.__call__, []

    def counting(self: logits.Encoder, wanted: range) -> Iterator[cache.Block]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(wanted)
        return encode(self, wanted)

    monkeypatch.setattr(logits.Encoder, "__call__", counting)
    tokenized.set(teacher={"logits": "sampled"})
    with pytest.raises(KeyboardInterrupt):
        tokenized.run("cache-logits")
    assert not Path("data/teacher").exists()
    (stale,) = [part.parent / ".00002.123.partial" for part in checkpoint_root().glob("*/cache/train/00001")]
    stale.mkdir()
    done.append(None)
    tokenized.run("cache-logits")
    assert [wanted for wanted in done if wanted][:3] == [range(30), range(30, 60), range(60, 90)]
    assert not list(checkpoint_root().glob("*/cache")), "nothing is left of an interrupted run"
    resumed = manifest()["splits"]
    done.clear()
    done += [None] * 3
    tokenized.run("cache-logits")
    assert manifest()["splits"] == resumed
    assert not list(Path("data/teacher").rglob("*.partial"))


def test_other_forms_are_another_cache(tokenized: Workspace) -> None:
    tokenized.run("cache-logits")
    tokenized.set(teacher={"logits": "dense"})
    with pytest.raises(
        UserError, match=r"data/teacher was made with another teacher.logits: run `dvc repro cache-logi"
    ):
        load_dataset(params.load_settings().teacher)
    tokenized.set(teacher={"logits": "hidden"}, corpus={"max_tokens": 1600})
    tokenized.run("tokenize")
    with pytest.raises(UserError, match="data/teacher holds other blocks than data/corpus"):
        load_dataset(params.load_settings().teacher)


@pytest.mark.parametrize("form", ["hidden", *FORMS])
def test_a_truncated_or_damaged_cache_is_refused(tokenized: Workspace, form: str) -> None:
    tokenized.set(teacher={"logits": form})
    tokenized.run("cache-logits")
    loaded, _ = load_dataset(params.load_settings().teacher)
    ids = torch.zeros(1, 32, dtype=torch.int64)
    (file, *_) = sorted(f for f in Path("data/teacher/train/00001").glob("*.npy") if ".ends" not in f.name)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    loaded.targets("train", [0], ids)
    with pytest.raises(UserError, match=r"data/teacher/train/00001 is damaged .*: run `dvc repro -f -s cache-logits`"):
        loaded.targets("train", [30], ids)
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"data/teacher/train/00001 is truncated \(\d+ bytes of \d+\): run `dvc repro"):
        load_dataset(params.load_settings().teacher)
    file.unlink()
    with pytest.raises(UserError, match=r"00001 is truncated"):
        load_dataset(params.load_settings().teacher)


def test_values_beyond_float16_are_refused() -> None:
    with pytest.raises(UserError, match=r"set teacher.logits to online"):
        logits.Hidden(32).encode(torch.full((8, 32), 1e5), None, 0)  # type: ignore[arg-type]


def test_as_many_tokens_as_there_are_is_no_top_k(tokenized: Workspace) -> None:
    tokenized.set(teacher={"logits": "topk", "topk": 300})
    with pytest.raises(UserError, match=r"teacher.topk: 300 is not below the vocabulary's 300"):
        tokenized.run("cache-logits")
