"""The teacher's layers on disk: the same training as by running it, made once, and refused where it cannot be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Workspace

from attnopt import settings as params
from attnopt.core.checkpoint import checkpoint_root, prune_checkpoints
from attnopt.core.errors import UserError
from attnopt.targets.dataset import load_dataset
from attnopt.training import layer_cache
from attnopt.training.trainer import Trainer


@pytest.fixture
def shifted(workspace: Workspace) -> Workspace:
    workspace.set(variants={"hedgehog": "hedgehog"}, hedgehog={"window": 0}, distill={"steps": 0, "log_every": 1})
    workspace.set(transfer={"steps": 6, "lr": 0.01}, teacher={"shift": 0.5})
    workspace.run("tokenize", "cache-logits")
    return workspace


def train(workspace: Workspace, layers: str, loss: str) -> Trainer:
    workspace.set(transfer={"layers": layers, "loss": loss})
    settings = params.load_settings()
    variant = settings.variant("hedgehog")
    trainer = Trainer(load_dataset(settings.teacher)[0], variant, variant.runs()[0])
    trainer.run()
    return trainer


@pytest.mark.parametrize("loss", ["outputs", "weights", "both"])
def test_cached_layers_train_as_the_teacher_itself_does(
    shifted: Workspace, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = train(shifted, "online", loss)
    cached = train(shifted, "cached", loss)
    ours, theirs = ([row.loss for row in t.log.history] for t in (cached, online))
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert cached.log.kl_end == pytest.approx(online.log.kl_end, rel=1e-3)
    assert cached.log.phases[0].flops < online.log.phases[0].flops
    monkeypatch.setattr(layer_cache, "layer_calls", None)
    again = train(shifted, "cached", loss)
    assert again.log.history[-1].loss == cached.log.history[-1].loss, "what is there is read"


def test_other_blocks_or_positions_are_another_cache(shifted: Workspace) -> None:
    train(shifted, "cached", "outputs")
    shifted.set(teacher={"shift": 0})
    shifted.run("cache-logits")
    train(shifted, "cached", "outputs")
    assert len(list(checkpoint_root().glob("*/layers"))) == 2
    prune_checkpoints()
    assert not list(checkpoint_root().glob("*/layers"))


def test_long_steps_run_the_teacher(shifted: Workspace) -> None:
    shifted.set(corpus={"long_block": 64}, distill={"long_share": 0.5})
    shifted.run("tokenize", "cache-logits")
    assert train(shifted, "cached", "outputs").record("").budget.long_steps == 3


def test_what_is_read_is_what_the_layers_got_and_gave(shifted: Workspace) -> None:
    dataset = load_dataset(params.load_settings().teacher)[0]
    rows = np.array([7, 0, 200])
    found = layer_cache.LayerCache(dataset).targets(rows, torch.device("cpu"))
    ids = torch.from_numpy(dataset.blocks["train"][rows].astype(np.int64))
    calls = layer_cache.layer_calls(dataset.teacher, ids, dataset.positions("train", rows, ids.device))
    torch.testing.assert_close(found.hidden, torch.stack([c.hidden for c in calls]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.outputs, torch.stack([c.output for c in calls]), rtol=1e-3, atol=1e-3)


def test_what_cannot_be_cached_is_refused(shifted: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"transfer.layers: values exceed float16; set it to online"):
        layer_cache._half(torch.full((2,), 1e5))
    with pytest.raises(UserError, match=r"transfer.layers: cached needs .* GiB, and .* are free under .checkpoints"):
        layer_cache.refuse_full_disk(2**60)
    calls = layer_cache.replayed_calls
    monkeypatch.setattr(
        layer_cache, "replayed_calls", lambda m, ids, p, hidden, out: calls(m, ids, p, hidden.flip(0), out)
    )
    with pytest.raises(UserError, match=r"those of GPT2LMHeadModel are not called alike; set it to online"):
        train(shifted, "cached", "outputs")
    assert not Path("models").exists()
