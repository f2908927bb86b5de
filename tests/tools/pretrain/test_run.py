"""The bundled teacher: what it is made of, and that making it can be stopped and gone on with."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, sentences
from safetensors.torch import load_file

from attnopt.core.errors import UserError
from attnopt.teacher import model as teacher
from attnopt.teacher.params import TeacherParams
from attnopt.tools import pretrain

BUNDLED = ROOT / "attnopt" / "assets" / "mini-gpt2"


def test_the_bundled_teacher_is_small_good_and_free_of_unk() -> None:
    assert (BUNDLED / "model.safetensors").stat().st_size <= 12_000_000
    record = json.loads((BUNDLED / "training.json").read_text())
    assert record["history"][-1]["valid_perplexity"] <= 90
    model, tokenizer = teacher.load_teacher(TeacherParams())
    assert teacher.describe_teacher(model)["head_dim"] == 64
    assert len(tokenizer) == 4096
    torch.manual_seed(0)
    written = model.generate(torch.tensor([[0]] * 8), do_sample=True, max_new_tokens=60, pad_token_id=0)
    assert "unk" not in tokenizer.decode(written.flatten())


def test_the_recorded_perplexity_is_that_of_the_committed_weights() -> None:
    model, tokenizer = teacher.load_teacher(TeacherParams())
    valid = pretrain.split_documents([text for _, text in pretrain.sample_articles()])["valid"]
    stream = pretrain.token_stream(tokenizer, valid)[: 40 * pretrain.BLOCK]
    recorded = json.loads((BUNDLED / "training.json").read_text())["perplexity_of_the_first_40_valid_blocks"]
    assert pretrain.perplexity(model, stream) == pytest.approx(recorded, rel=0.01)


def test_training_never_opens_valid_or_test(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(" = A = \n \n " + sentences(0, 20))
    texts, valid = pretrain.training_text(tmp_path)
    assert not set(valid) & set(texts)
    with pytest.raises(UserError, match=r"train.txt is missing"):
        pretrain.training_text(tmp_path / "nowhere")


def test_batches_go_on_from_any_step_and_differ_between_passes() -> None:
    stream = torch.arange(pretrain.BLOCK * pretrain.BATCH * 4 + 500)
    whole = list(pretrain.batches_from(stream, 0, 7, seed=1))
    assert len(whole) == 7
    for first in (2, 3, 5):
        rest = list(pretrain.batches_from(stream, first, 7, seed=1))
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[first:], strict=True))
    assert not torch.equal(whole[0], whole[3])


def test_stopped_and_started_again_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "SHAPE", pretrain.SHAPE | {"n_embd": 32, "n_layer": 1, "n_positions": 16})
    for name, value in {"BLOCK": 16, "BATCH": 2, "SAVE_EVERY": 2}.items():
        monkeypatch.setattr(pretrain, name, value)
    monkeypatch.setattr(torch, "compile", lambda f: f)
    monkeypatch.setattr(pretrain, "sample_articles", lambda: [(str(i), sentences(i, 9)) for i in range(10)])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text(sentences(99, 60))
    ends = []
    for interrupted in (True, False):
        if interrupted:
            monkeypatch.setattr(pretrain, "perplexity", _stop_at_the_third_call())
            with pytest.raises(KeyboardInterrupt):
                pretrain.pretrain(tmp_path, tmp_path / "out", 8, 0.01, 0)
            assert not (tmp_path / "out").exists()
            monkeypatch.setattr(pretrain, "perplexity", lambda *_: 1.0)
        torch.manual_seed(5)
        pretrain.pretrain(tmp_path, tmp_path / "out", 8, 0.01, 0)
        ends.append(load_file(tmp_path / "out" / "model.safetensors"))
    assert all(torch.equal(ends[0][n], ends[1][n]) for n in ends[1])


def _stop_at_the_third_call():
    calls = []

    def perplexity(*_: object) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return 1.0

    return perplexity
