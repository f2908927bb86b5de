"""The training run of the bundled teacher: it can be stopped and gone on with, and learns."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import sentences
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from attnopt.tools.pretrain import mix, model, run, text

SMALL = {"n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 32}


@pytest.fixture
def little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with train.txt and a teacher to grow from; sizes that train in a second."""
    monkeypatch.setattr(model, "SHAPE", model.SHAPE | SMALL | {"n_layer": 2, "n_positions": 64})
    monkeypatch.setattr(run, "MATCHING", ((1, 0), (1, 3)))
    monkeypatch.setattr(mix, "POSITIONS", 64)
    for name, value in {"SHORT": 32, "LONG": 64, "TOKENS": 128, "LONG_EVERY": 2, "SAVE_EVERY": 2}.items():
        monkeypatch.setattr(run, name, value)
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    monkeypatch.setattr(text, "sample_articles", lambda: [(str(i), sentences(i, 9)) for i in range(10)])
    monkeypatch.setattr(run, "figures", lambda *_: {"perplexity": {"128": 1.0}})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text(sentences(99, 60))
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**model.SHAPE | SMALL)).save_pretrained("start")
    (tmp_path / "start" / "training.json").write_text('{"tokens": 7}')
    return tmp_path


def train(folder: Path, steps: int = 8, lr: float = 0.01) -> dict[str, Any]:
    return run.pretrain(folder, folder / "out", steps, lr, 0, folder / "start")


def test_stopped_and_started_again_it_ends_the_same(little: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(run, "figures", _stop_at_the_third_call())
        with pytest.raises(KeyboardInterrupt):
            train(little)
    assert not (little / "out").exists()
    torch.manual_seed(5)
    interrupted = train(little)
    first = load_file(little / "out" / "model.safetensors")
    whole = train(little)
    second = load_file(little / "out" / "model.safetensors")
    assert [entry["step"] for entry in interrupted["history"]] == [2, 4, 6, 8]
    assert [e["loss"] for e in interrupted["history"]] == [e["loss"] for e in whole["history"]]
    assert all(torch.equal(first[n], second[n]) for n in second)


def test_the_record_says_what_was_done(little: Path) -> None:
    train(little, steps=2)
    record = json.loads((little / "out" / "training.json").read_text())
    assert record["start"]["tokens"] == 7
    assert record["tokens"] == 2 * 128
    assert record["mix"] == mix.MIX | {"home": mix.HOME}
    assert record["history"][-1]["steps"] == record["steps"] == 2
    assert record["figures_on_the_first_article"] == {"perplexity": {"128": 1.0}}
    assert set(record["figures"]) <= set(record["measured"])


def test_the_mean_of_the_last_saves_is_written(little: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "AVERAGED", 2)
    monkeypatch.setattr(run, "APART", 2)
    saves: list[dict[str, Any]] = []
    keep = run.Checkpoint.save
    monkeypatch.setattr(
        run.Checkpoint, "save", lambda self, state: (saves.append(copy.deepcopy(state)), keep(self, state))
    )
    train(little)
    written = load_file(little / "out" / "model.safetensors")
    name = "transformer.wpe.weight"
    mean = (saves[-1]["model"][name] + saves[-3]["model"][name]) / 2
    torch.testing.assert_close(written[name].float(), mean, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(written[name].float(), saves[-1]["model"][name], rtol=1e-3, atol=1e-4)


def test_tokens_that_do_not_count_leave_the_loss_alone(little: Path) -> None:
    net = model.grown_model(little / "start", 0).eval()
    net.transformer.wte.weight.data *= 10
    ids, positions = torch.randint(4096, (2, 16)), torch.arange(16).expand(2, 16)
    counts = torch.rand(2, 16) < 0.2
    logp = net(input_ids=ids, position_ids=positions).logits.log_softmax(-1)
    expected = [-logp[b, t - 1, ids[b, t]] for b in range(2) for t in range(1, 16) if counts[b, t]]
    sources, weight = torch.full((2, 16), -1), torch.tensor(0.3)
    total, loss = run._loss(net, ids, counts, positions, sources, weight)
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-2, atol=0)
    assert torch.equal(total, loss)
    sources[1, 9] = 4
    total, again = run._loss(net, ids, counts, positions, sources, weight)
    assert torch.equal(again, loss)
    assert total > loss


def test_every_second_step_has_long_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(run, "batch_of_step", lambda source, seed, step, rows, length: asked.append((rows, length)))
    for step in range(8):
        run.batch(None, 0, step)  # type: ignore[arg-type]
    assert asked == [(32, 256), (8, 1024)] * 4


def _stop_at_the_third_call():
    calls = []

    def figures(*_: object) -> dict[str, Any]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"perplexity": {"128": 1.0}}

    return figures
