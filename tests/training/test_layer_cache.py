"""The teacher's layers on disk: the same training as by running it, made once, and refused where it cannot be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Workspace

from attnopt import settings as params
from attnopt.core.checkpoint import checkpoint_root, prune_checkpoints
from attnopt.core.errors import UserError
from attnopt.student.calls import watched
from attnopt.targets.dataset import load_dataset
from attnopt.training import layer_cache
from attnopt.training.trainer import Trainer
from training.world import make_objective


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


@pytest.mark.parametrize("settings", [{"clip": 9}, {"accumulate": 2, "clip": 0.01}, {"recompute": True}])
def test_layers_in_turn_train_as_all_at_once(shifted: Workspace, settings: dict) -> None:
    """Clipping too: it is done on the gradients of all layers."""
    shifted.set(distill=settings, hedgehog={"window": 0, "transfer": {"train": "attention"}})
    cached = train(shifted, "cached", "outputs")
    in_turn = train(shifted, "in_turn", "outputs")
    for ours, theirs in zip(in_turn.log.history, cached.log.history, strict=True):
        assert (ours.loss, ours.grad_norm) == pytest.approx((theirs.loss, theirs.grad_norm), rel=1e-4)
    assert in_turn.weights.keys() == cached.weights.keys()
    for name, tensor in in_turn.weights.items():
        assert (tensor - cached.weights[name]).norm() < 1e-3 * tensor.norm() or ".c_attn.bias" in name
    assert in_turn.record("").flops == pytest.approx(cached.record("").flops, rel=0.01)


def test_the_penalty_of_a_layer_is_counted_in_its_turn(shifted: Workspace) -> None:
    shifted.set(variants={"masks": "masks"}, masks={"candidates": ["last:1", "window:4"], "l1": 0.01})
    found = []
    for layers in ("cached", "in_turn"):
        shifted.set(transfer={"layers": layers})
        objective, ids = make_objective("transfer", "masks")
        pieces = objective.pieces((ids, objective.targets("train", np.arange(2), ids), None))
        found.append(sum(float(objective(*piece)[0].detach()) for piece in pieces))
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_in_turn_the_teacher_does_not_run_and_one_layer_is_held(shifted: Workspace) -> None:
    shifted.set(transfer={"layers": "in_turn"})
    cache, ids = make_objective("transfer")
    del cache  # it is made
    objective, ids = make_objective("transfer")
    parts = objective.pieces((ids, objective.targets("train", np.arange(2), ids), None))
    objective.begin()
    kept = []
    with watched(objective.dataset.teacher.modules(), before=lambda *_: pytest.fail("the teacher ran")):
        for piece in parts:
            held: list[int] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t: (held.append(t.nbytes), t)[1], lambda t: t):  # noqa: B023
                loss, _ = objective(*piece)
            loss.backward()
            kept.append(sum(held))
            assert piece[1].hidden.shape == piece[1].outputs.shape == (1, *ids.shape, 32)
    shifted.set(transfer={"layers": "cached"})
    objective, ids = make_objective("transfer")
    objective.begin()
    whole: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (whole.append(t.nbytes), t)[1], lambda t: t):
        objective(ids, objective.targets("train", np.arange(2), ids))
    assert len(kept) == 2
    assert max(kept) < 0.6 * sum(whole)


def test_what_cannot_be_done_in_turn_is_refused(shifted: Workspace) -> None:
    with pytest.raises(UserError, match=r"hedgehog.transfer.loss: 'both' needs a whole copy .* in_turn .*: outputs"):
        train(shifted, "in_turn", "both")
    shifted.set(corpus={"long_block": 64}, distill={"long_share": 0.5})
    shifted.run("tokenize", "cache-logits")
    with pytest.raises(UserError, match=r"hedgehog.transfer.layers: in_turn reads .* gives 3 of its steps longer ones"):
        train(shifted, "in_turn", "outputs")


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
