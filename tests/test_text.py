"""Writing and its judges."""

import math
from pathlib import Path

import pytest
import torch
from conftest import Workspace

from attnopt import params, teacher, text


def test_distinct_and_repetition_by_hand() -> None:
    assert text.distinct("a b a b", 1) == 0.5
    assert text.distinct("a b a b", 2) == pytest.approx(2 / 3)
    assert text.repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert text.distinct("", 2) == 1
    assert text.repetition("one two") == 0


@torch.no_grad()
def test_the_teachers_perplexity_of_a_continuation(workspace: Workspace) -> None:
    model, _ = teacher.load(params.load().teacher)
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
