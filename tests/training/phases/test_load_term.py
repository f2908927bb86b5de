"""What a mixture's calls add to the loss of every phase, and what training sees of its router."""

import pytest
import torch
from conftest import Workspace

from attnopt.mechanisms.mixture import Mixture
from attnopt.mechanisms.shared.extra_loss import is_training
from attnopt.student.attach import mechanisms_of
from training.world import make_objective


@pytest.fixture
def mixed(phased: Workspace) -> Workspace:
    experts = ["none", "softmax"]
    phased.set(variants={"softmax": "softmax", "none": "none", "mixture": "mixture", "unloaded": "mixture"})
    phased.set(mixture={"experts": experts, "load_weight": 0.5}, unloaded={"experts": experts, "load_weight": 0})
    return phased


@pytest.mark.parametrize("phase", ["transfer", "align", "distill"])
def test_the_load_term_of_every_layer_is_in_the_loss(mixed: Workspace, phase: str) -> None:
    """At the start nine tenths of the weight, and all first places, are the first expert's: a load of 1.8."""
    objective, ids = make_objective(phase, "mixture")
    without, _ = make_objective(phase, "unloaded")
    objective.begin()
    told = objective.targets("train", slice(2), ids)
    loss, _ = objective(ids, told)
    layers = len(mechanisms_of(objective.student))
    assert float((loss - without(ids, told)[0]).detach()) == pytest.approx(0.5 * 1.8 * layers, rel=1e-4)
    loss.backward()
    assert all(m.bias.grad.abs().min() > 0 for m in mechanisms_of(objective.student))
    assert not is_training()


@torch.no_grad()
def test_training_reads_all_experts_and_validation_the_chosen_one(mixed: Workspace) -> None:
    objective, ids = make_objective("transfer", "unloaded")
    seen: list[float] = []

    def keep(self: Mixture, x: object) -> torch.Tensor:
        weights = routed(self, x)
        seen.append(float(weights.amax()))
        return weights

    routed = Mixture.routed
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Mixture, "routed", keep)
        objective(ids, None)
        objective.student(ids)
    layers = len(seen) // 2
    assert seen[:layers] == pytest.approx([0.9] * layers)
    assert seen[layers:] == [1.0] * layers
