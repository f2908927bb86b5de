"""The figures of the bundled teacher: how they are taken, and that the committed ones are as demanded."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from attnopt.tools.pretrain import measure, text

BUNDLED = ROOT / "attnopt" / "assets" / "mini-gpt2"


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads((BUNDLED / "training.json").read_text())


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any, list[str]]:
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    held_out = text.split_documents([article for _, article in text.sample_articles()])["valid"]
    return model, AutoTokenizer.from_pretrained(BUNDLED), held_out


def test_the_bundled_teacher_is_small_and_long(loaded: tuple[Any, Any, list[str]]) -> None:
    assert (BUNDLED / "model.safetensors").stat().st_size <= 12_000_000
    config = loaded[0].config
    assert (config.model_type, config.n_positions, config.n_embd // config.n_head) == ("gpt2", 1024, 64)


def test_its_record_says_that_it_copies_recalls_and_reads(record: dict[str, Any]) -> None:
    figures = record["figures"]
    assert set(figures) == set(record["measured"])
    assert {"0", "128", "512"} <= set(figures["copy"])
    assert all(score["accuracy"] >= 0.9 for score in figures["copy"].values())
    assert all(score["accuracy"] >= 0.95 for score in figures["copy_after_cue"].values())
    assert figures["recall"]["32"]["accuracy"] >= 0.95
    assert figures["perplexity"]["128"] <= 63.1
    assert figures["perplexity"]["1024"] < figures["perplexity"]["128"]


def test_the_committed_weights_have_the_recorded_figures(
    record: dict[str, Any], loaded: tuple[Any, Any, list[str]]
) -> None:
    model, tokenizer, held_out = loaded
    found = measure.figures(model, tokenizer, held_out[:1], measure.CHECK)
    recorded = record["figures_on_the_first_article"]
    assert found["perplexity"] == pytest.approx(recorded["perplexity"], rel=0.01)
    for kind in ("copy", "copy_after_cue", "recall"):
        for size, score in found[kind].items():
            assert score["accuracy"] >= 0.85
            assert score["accuracy"] == pytest.approx(recorded[kind][size]["accuracy"], abs=0.03)


def test_perplexity_is_that_of_all_but_the_first_token_of_whole_blocks() -> None:
    table = torch.randn(9, 9, generator=torch.Generator().manual_seed(0))
    stream = torch.randint(9, (47,), generator=torch.Generator().manual_seed(1))

    def model(input_ids: Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=table[input_ids])

    nll = [
        F.cross_entropy(table[stream[t - 1]], stream[t]).item()
        for block in range(5)
        for t in range(8 * block + 1, 8 * block + 8)
    ]
    for tokens in (8, 24, 8192):
        assert measure.perplexity(model, stream, 8, tokens) == pytest.approx(math.exp(sum(nll) / len(nll)), rel=1e-5)
