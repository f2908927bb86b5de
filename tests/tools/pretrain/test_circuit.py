"""The circuit that copies, as planted: where its heads look, and what they are led by."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from attnopt.tools.pretrain.circuit import make_circuit, match_loss, plant_match, plant_shifts

HEADS, WIDTH, LENGTH = 4, 256, 512


@pytest.fixture(scope="module")
def planted() -> Any:
    """Two layers, the circuit and nothing else."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=600, n_positions=LENGTH, n_embd=WIDTH, n_layer=2, n_head=HEADS)
    net = GPT2LMHeadModel(config).eval()
    net.set_attn_implementation("eager")
    with torch.no_grad():
        net.transformer.wte.weight.normal_(std=0.25)
        circuit = make_circuit(net.transformer.wte.weight, LENGTH, WIDTH // HEADS)
        net.transformer.wpe.weight.copy_(circuit.waves)
        plant_shifts(net.transformer.h[0], circuit, HEADS)
        plant_match(net.transformer.h[1], circuit, 2, HEADS)
    return net


@pytest.fixture(scope="module")
def seen(planted: Any) -> tuple[Tensor, Any]:
    run = torch.randint(600, (1, 200), generator=torch.Generator().manual_seed(1))
    other = torch.randint(600, (1, 100), generator=torch.Generator().manual_seed(2))
    ids = torch.cat([run, other, run], 1)
    with torch.no_grad():
        return ids, planted(ids, output_attentions=True, output_hidden_states=True)


def test_each_head_of_the_first_layer_attends_to_one_offset(seen: tuple[Tensor, Any]) -> None:
    for head, weights in enumerate(seen[1].attentions[0][0]):
        assert weights.diagonal(-(head + 1)).mean() > 0.95


def test_the_matching_head_attends_to_what_followed_the_same_tokens(seen: tuple[Tensor, Any]) -> None:
    weights, t = seen[1].attentions[1][0, 2], torch.arange(304, 499)
    assert weights[t, t - 299].mean() > 0.8
    before = torch.arange(100, 200)
    assert weights[before].amax(-1).mean() < 0.5


def test_the_loss_is_the_mean_negative_log_weight_of_the_sources(planted: Any, seen: tuple[Tensor, Any]) -> None:
    _, out = seen
    sources = torch.full((1, 500), -1)
    sources[0, 310], sources[0, 50] = 11, 7
    weights = out.attentions[1][0, 2]
    expected = -(weights[310, 11].log() + weights[50, 7].log()) / 2
    with torch.no_grad():
        found = match_loss(planted.transformer.h[1], out.hidden_states[1], 2, sources)
        assert match_loss(planted.transformer.h[1], out.hidden_states[1], 2, sources.fill_(-1)) == 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
