"""The network that is grown from the smaller teacher, its optimizers and its schedule."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from attnopt.core.errors import UserError
from attnopt.tools.pretrain import circuit, model

SMALL = {"vocab_size": 90, "n_positions": 16, "n_embd": 64, "n_layer": 2, "n_head": 4}


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(1)
    GPT2LMHeadModel(GPT2Config(**SMALL, initializer_range=0.2)).save_pretrained(tmp_path / "start")
    monkeypatch.setattr(model, "SHAPE", SMALL | {"n_positions": 64, "n_layer": 3})
    return tmp_path / "start"


@torch.no_grad()
def test_grown_without_its_circuit_it_says_what_the_smaller_one_said(start: Path, monkeypatch: Any) -> None:
    for name in ("plant_shifts", "plant_match"):
        monkeypatch.setattr(model, name, lambda *_: None)
    monkeypatch.setattr(circuit, "WAVE_NORM", 0.0)
    small, grown = GPT2LMHeadModel.from_pretrained(start).eval(), model.grown_model(start, seed=0).eval()
    ids = torch.arange(16)[None]
    torch.testing.assert_close(grown(ids).logits, small(ids).logits)
    assert grown.config.n_layer == 3
    assert grown.transformer.wpe.weight.shape == (64, 64)


def test_new_positions_are_the_mean_of_the_far_ones() -> None:
    old = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    new = model.longer_positions(old, 64)
    assert torch.equal(new[:16], old)
    torch.testing.assert_close(new[16:], old[8:-1].mean(0).expand(48, -1))


@pytest.mark.parametrize(("key", "value", "allowed"), [("n_embd", 32, 64), ("vocab_size", 60, 90), ("n_layer", 3, 2)])
def test_a_teacher_that_does_not_fit_is_refused(start: Path, key: str, value: int, allowed: int) -> None:
    GPT2LMHeadModel(GPT2Config(**SMALL | {key: value})).save_pretrained(start)
    with pytest.raises(UserError, match=rf"{key} is {value}.*{allowed}"):
        model.grown_model(start, seed=0)


def test_every_weight_has_one_optimizer_and_positions_a_lower_rate(start: Path) -> None:
    net: Any = model.grown_model(start, seed=0)
    opts = model.optimizers(net, 1.0)
    model.set_rate(opts, 0.5)
    groups = [group for opt in opts for group in opt.param_groups]
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in net.parameters())
    rate_of = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rate_of[id(net.transformer.wpe.weight)] == pytest.approx(0.05)
    assert rate_of[id(net.transformer.wte.weight)] == rate_of[id(net.transformer.h[0].attn.c_attn.weight)] == 0.5


def test_the_rate_rises_and_falls_to_nothing() -> None:
    assert [model.rate(step, 1000, warmup=100) for step in (0, 49, 200, 500, 750)] == [0.01, 0.5, 0.8, 0.5, 0.25]
    assert 0 < model.rate(999, 1000) < 0.01
