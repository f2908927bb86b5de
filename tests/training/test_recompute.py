"""Blocks that run again in the backward pass: the same weights to the bit, and less that is kept for it."""

from collections.abc import Callable

import pytest
import torch
from conftest import Workspace
from safetensors.torch import load_file

from attnopt.core.errors import UserError
from attnopt.mechanisms import load_mechanism, mechanism_names
from attnopt.student.calls import watched
from attnopt.student.layers import attention_layers, blocks_of
from training.world import losses, make_objective


@pytest.fixture
def recomputing(workspace: Workspace) -> Callable[[bool], None]:
    """Turns recomputing on or off, in a study of all mechanisms."""
    kinds = [kind for kind in mechanism_names() if load_mechanism(kind).control is None]
    sections = {kind: {} for kind in kinds} | {"mixture": {"load_weight": 0.5}, "masks": {"l1": 0.01}}
    workspace.set(variants={kind: kind for kind in kinds}, teacher={"logits": "online"}, **sections)
    workspace.run("tokenize", "cache-logits")
    return lambda wanted: workspace.set(distill={"recompute": wanted})


@pytest.mark.parametrize("kind", ["softmax", "masks", "mixture", "gla", "nsa", "quantised"])
def test_the_curve_is_the_same_to_the_bit(recomputing: Callable[[bool], None], kind: str) -> None:
    recomputing(False)
    kept = losses(kind)
    recomputing(True)
    assert losses(kind) == kept


@pytest.mark.parametrize("phase", ["transfer", "align", "distill"])
def test_less_is_kept_and_each_module_runs_twice(recomputing: Callable[[bool], None], phase: str) -> None:
    def measure() -> tuple[int, int]:
        """Bytes kept for the backward pass besides what the modules got, and calls of these."""
        objective, ids = make_objective(phase, "performer")
        objective.begin()
        modules = attention_layers(objective.student) if phase == "transfer" else blocks_of(objective.student)
        kept: list[int] = []
        calls: list[str] = []
        inside = [next(module.children()) for module in modules]
        with watched(inside, after=lambda module, *_: calls.append("")):
            with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.nbytes), t)[1], lambda t: t):
                loss, _ = objective(ids, objective.targets("train", range(2), ids))
            loss.backward()
        return sum(kept), len(calls)

    recomputing(False)
    whole, once = measure()
    recomputing(True)
    less, twice = measure()
    assert less < 0.4 * whole
    assert twice == 2 * once


def test_a_run_ends_with_the_same_weights(workspace: Workspace) -> None:
    workspace.set(transfer={"steps": 4}, align={"steps": 2}, lora={"steps": 2})
    workspace.run("tokenize", "cache-logits", "distill none")
    kept = load_file("models/none/0/weights.safetensors")
    workspace.set(distill={"recompute": True})
    workspace.run("distill none")
    again = load_file("models/none/0/weights.safetensors")
    assert again.keys() == kept.keys()
    assert all(torch.equal(again[name], t) for name, t in kept.items())


def test_attention_weights_are_not_recomputed(workspace: Workspace) -> None:
    workspace.set(distill={"recompute": True}, transfer={"steps": 2, "loss": "both"})
    workspace.run("tokenize", "cache-logits")
    with pytest.raises(UserError, match=r"softmax.transfer.loss: 'both' .* distill.recompute does not; allowed: out"):
        make_objective("transfer", "softmax")
