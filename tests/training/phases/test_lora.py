"""Adapters: drawn from the run's features seed, merged at the end, and refused where there is nothing to adapt."""

import pytest
import torch
from conftest import Workspace
from safetensors.torch import load_file

import attnopt
from attnopt.core.errors import UserError
from training.world import make_objective


def test_adapters_are_merged_and_gone(phased: Workspace) -> None:
    phased.set(lora={"steps": 8, "lr": 0.01, "targets": ["c_proj"]})
    phased.run("distill hedgehog")
    moved = set(load_file("models/hedgehog/0/weights.safetensors"))
    assert not [n for n in moved if "lora" in n or "base_layer" in n]
    assert {n.split(".")[-2] for n in moved if ".mechanism." not in n} == {"c_proj"}
    assert attnopt.load("models/hedgehog/0").generate(torch.tensor([[5, 6]]), max_new_tokens=2).shape == (1, 4)


def test_adapters_on_nothing_are_a_mistake(phased: Workspace) -> None:
    phased.set(lora={"steps": 8, "targets": ["v_proj"]})
    with pytest.raises(
        UserError, match=r"lora.targets: \['v_proj'\] are no projections of this model; it has c_attn, c_proj"
    ):
        phased.run("distill hedgehog")


def adapters(run: int) -> dict[str, torch.Tensor]:
    lora, _ = make_objective("lora", run=run)
    return {name: t.detach().clone() for name, t in lora.begin().others.items()}


def test_adapters_are_drawn_from_the_features_seed(phased: Workspace) -> None:
    phased.set(seeds=[3, 4, 5], lora={"steps": 1})
    first, second = adapters(0), adapters(1)
    drawn = [name for name in first if "lora_A" in name]
    assert drawn
    assert not any(torch.equal(first[name], second[name]) for name in drawn)
    assert all(torch.equal(first[name], again) for name, again in adapters(0).items())
    phased.set(seed={"features": 3})
    assert all(torch.equal(first[name], t) for name, t in adapters(2).items())


def test_what_is_merged_is_what_the_adapters_gave(phased: Workspace) -> None:
    lora, ids = make_objective("lora")
    names = set(lora.student.state_dict())
    with torch.no_grad():
        for parameter in lora.begin().parameters():
            parameter.add_(0.05)
        adapted = lora.student(ids).logits
        lora.end()
        torch.testing.assert_close(lora.student(ids).logits, adapted, rtol=1e-4, atol=1e-4)
    assert set(lora.student.state_dict()) == names
    assert not hasattr(lora.student, "peft_config")
