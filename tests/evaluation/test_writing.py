"""Writing and its judges."""

import math
from pathlib import Path

import pytest
import torch
from conftest import Workspace

from attnopt import settings as params
from attnopt.core.files import read_json
from attnopt.evaluation import writing as text
from attnopt.student import build as students
from attnopt.teacher import model as teacher


def test_distinct_and_repetition_by_hand() -> None:
    assert text.distinct("a b a b", 1) == 0.5
    assert text.distinct("a b a b", 2) == pytest.approx(2 / 3)
    assert text.repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert text.distinct("", 2) == 1
    assert text.repetition("one two") == 0


@torch.no_grad()
def test_the_teachers_perplexity_of_a_continuation(workspace: Workspace) -> None:
    model, _ = teacher.load_teacher(params.load_settings().teacher)
    prompt, new = [5, 6, 7], [8, 9]
    logits = model(torch.tensor([prompt + new])).logits[0].log_softmax(-1)
    expected = math.exp(-(logits[2, 8] + logits[3, 9]).item() / 2)
    assert text.perplexity_of(model, prompt, new) == pytest.approx(expected, rel=1e-4)
    assert text.perplexity_of(model, prompt, []) is None


def test_sampling_is_seeded_and_softmax_writes_as_the_teacher(workspace: Workspace) -> None:
    workspace.run("tokenize", "cache-logits", "distill softmax", "sample softmax")
    import json

    samples = json.loads(Path("results/sample/softmax/0/record.json").read_text())["samples"]
    assert [s["prompt"] for s in samples] == ["Anna the king", "Bela"]
    assert all(s["text"] == s["teacher_text"] for s in samples)
    before = Path("results/sample/softmax/0/record.json").read_text()
    workspace.run("sample softmax")
    again = json.loads(Path("results/sample/softmax/0/record.json").read_text())["samples"]
    assert [s["text"] for s in again] == [s["text"] for s in json.loads(before)["samples"]]
    workspace.set(sample={"seed": 1})
    workspace.run("sample softmax")
    other = json.loads(Path("results/sample/softmax/0/record.json").read_text())["samples"]
    assert [s["text"] for s in other] != [s["text"] for s in again]


@torch.no_grad()
def test_token_kl_is_that_of_the_whole_logits(workspace: Workspace) -> None:
    model, _ = teacher.load_teacher(params.load_settings().teacher)
    student = students.build_student(model, params.load_settings().variant("none").swap, seed=0)
    prompt, new = [5, 6, 7], [8, 9, 10]
    log_p, log_q = (m(torch.tensor([prompt + new])).logits[0].log_softmax(-1) for m in (model, student))
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)[2:5]
    assert text.token_kl(model, student, prompt, new) == pytest.approx(expected.tolist(), abs=1e-4)
    assert text.token_kl(model, model, prompt, new) == [0, 0, 0]
    assert text.token_kl(model, student, prompt, []) == []


def test_pieces_join_to_the_text_also_within_a_character(workspace: Workspace) -> None:
    _, tokenizer = teacher.load_teacher(params.load_settings().teacher, model=False)
    ids = tokenizer("the é 🙂 king", add_special_tokens=False)["input_ids"]
    for count in range(len(ids) + 1):
        found = text.token_texts(tokenizer, ids[:count])
        assert len(found) == count
        assert "".join(found) == tokenizer.decode(ids[:count])
    smile = [piece.strip() for piece in found].index("🙂")
    assert found[smile - 1] == ""


def test_a_sample_has_a_text_and_a_kl_for_each_token(workspace: Workspace) -> None:
    workspace.set(none={"seeds": [2]})
    workspace.run("tokenize", "cache-logits", "distill none", "sample none")
    for sample in read_json("results/sample/none/2/record.json")["samples"]:
        assert "".join(sample["tokens"]) == sample["text"]
        assert len(sample["tokens"]) == len(sample["token_kl"]) == 8
        assert min(sample["token_kl"]) > 0
