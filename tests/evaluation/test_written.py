"""Recall that models write themselves: the prompts are what they say, and an answer is right to the last character."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Workspace
from torch import Tensor
from world import POSITIONS, lengthen

from attnopt import settings
from attnopt.cli import main
from attnopt.core.paths import CORPUS
from attnopt.corpus.blocks import Documents, read_documents
from attnopt.evaluation.params import SampleParams
from attnopt.evaluation.written import Asked, Prompt, Written, answered, commonest, draw_prompts
from attnopt.records.sample import SampleRecord
from attnopt.student.attach import attach
from attnopt.student.swap import Swap
from attnopt.teacher.model import load_teacher


class Scribe:
    """Writes what it is told to, by prompt, and notes the shape of what it is asked."""

    def __init__(self, tokenizer: Any, lines: dict[tuple[int, ...], str]):
        self.tokenizer, self.lines, self.device, self.batches = tokenizer, lines, torch.device("cpu"), []

    def generate(self, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, **how: Any) -> Tensor:
        assert attention_mask.all()
        assert not how["do_sample"]
        assert how["use_cache"]
        self.batches.append(tuple(input_ids.shape))
        out = []
        for row in input_ids.tolist():
            new = self.tokenizer.encode(self.lines[tuple(row)])[:max_new_tokens]
            out.append([*row, *new, *[how["pad_token_id"]] * (max_new_tokens - len(new))])
        return torch.tensor(out)


@pytest.fixture
def world(workspace: Workspace) -> tuple[Documents, Any]:
    workspace.run("tokenize")
    return read_documents(CORPUS, "test"), load_teacher(settings.load_settings().teacher, model=False)[1]


def test_a_copy_is_asked_for_after_two_copies_and_the_first_word(world: tuple[Documents, Any]) -> None:
    documents, tokenizer = world
    (asked,) = draw_prompts(SampleParams(recall={"copy": [20]}, items=5), documents, tokenizer, POSITIONS)
    text = " ".join(tokenizer.decode(documents.tokens).split())
    assert len(asked.prompts) == 5
    for prompt in asked.prompts:
        one, two, first = tokenizer.decode(list(prompt.ids)).split("\n\n")
        assert one == two == first + prompt.answer
        assert " " not in first
        assert one in text
        assert prompt.tokens == len(tokenizer.encode(prompt.answer))
    assert asked.tokens == max(len(prompt.ids) + prompt.tokens for prompt in asked.prompts)


def test_a_phone_book_is_asked_for_a_third_number(world: tuple[Documents, Any]) -> None:
    documents, tokenizer = world
    (asked,) = draw_prompts(SampleParams(recall={"phone_book": [4]}, items=5), documents, tokenizer, POSITIONS)
    for prompt in asked.prompts:
        listed, shots, name = tokenizer.decode(list(prompt.ids)).split("\n\n")
        assert len(listed.split("\n")) == 4
        assert f"{name}{prompt.answer}" in listed.split("\n")
        assert f"{name}{prompt.answer}" not in shots
        assert prompt.answer.strip().isdecimal()


def test_prompts_are_a_function_of_the_seed(world: tuple[Documents, Any]) -> None:
    drawn = [
        draw_prompts(SampleParams(recall={"copy": [8], "phone_book": [3]}, seed=seed), *world, POSITIONS)
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_prompts_of_few_lengths_are_kept_so_that_they_decode_together() -> None:
    prompts = [Prompt(tuple(range(n)), str(i), 1) for i, n in enumerate([5, 7, 5, 6, 7, 5, 8])]
    assert [prompt.answer for prompt in commonest(prompts, 4)] == ["0", "2", "5", "1"]


def test_an_answer_is_right_to_the_last_character_and_ends_where_its_line_does(world: tuple[Documents, Any]) -> None:
    tokenizer = world[1]
    prompts = [Prompt((1, 2, i), " river house", len(tokenizer.encode(" river house"))) for i in range(6)]
    prompts.append(Prompt((1, 2, 3, 4), " stone", len(tokenizer.encode(" stone"))))
    written = [
        " river house",
        " river house\nand more",
        " river houses",
        " river hous",
        "",
        "\n river house",
        " stone\n",
    ]
    scribe = Scribe(tokenizer, {prompt.ids: line for prompt, line in zip(prompts, written, strict=True)})
    found = answered(scribe, tokenizer, Asked("copy", 3, prompts))
    assert found.tolist() == [True, True, False, False, False, False, True]
    assert scribe.batches == [(6, 3), (1, 4)]


@torch.no_grad()
def test_what_is_written_through_the_state_is_the_arg_max_of_whole_forward_passes(world: tuple[Documents, Any]) -> None:
    documents, tokenizer = world
    model, _ = load_teacher(settings.load_settings().teacher)
    for writer in (model, attach(copy.deepcopy(model), Swap("window", {"window": 4, "sinks": 1}))):
        prompts = []
        for ids in documents.tokens[:90].reshape(3, 30).astype(int):
            text = torch.from_numpy(ids)[None]
            for _ in range(12):
                text = torch.cat([text, writer(text, use_cache=False).logits[:, -1:].argmax(-1)], 1)
            line = tokenizer.decode(text[0, 30:], skip_special_tokens=True).split("\n")[0]
            prompts.append(Prompt(tuple(ids.tolist()), line, 11))
        assert len({prompt.answer for prompt in prompts}) > 1
        assert answered(writer, tokenizer, Asked("copy", 3, prompts)).all()


def test_a_student_is_held_against_what_the_teacher_wrote(world: tuple[Documents, Any]) -> None:
    tokenizer = world[1]
    prompts = [Prompt((i,), " river", len(tokenizer.encode(" river"))) for i in range(10)]
    writers = [Scribe(tokenizer, {(i,): " river" if i < right else " no" for i in range(10)}) for right in (10, 5, 8)]
    (row,) = Written(writers[0], tokenizer, [Asked("copy", 3, prompts)]).of(writers[1])
    assert (row.accuracy, row.teacher_accuracy, row.retention) == (0.5, 1, 0.5)
    assert 0.2 < row.retention_low < 0.5 < row.retention_high < 0.8
    (row,) = Written(writers[2], tokenizer, [Asked("copy", 3, prompts)]).of(writers[1])
    assert (row.teacher_accuracy, row.retention) == (0.8, None)


def test_the_stage_writes_rows_and_softmax_answers_as_the_teacher(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengthen(workspace)
    workspace.set(sample={"recall": {"copy": [8], "phone_book": [3, 4]}, "items": 3})
    wrote: list[np.ndarray] = []
    monkeypatch.setattr("attnopt.evaluation.written.answered", lambda *_: wrote.append(answered(*_)) or wrote[-1])
    workspace.run("tokenize", "cache-logits", "distill softmax", "sample softmax")
    rows = SampleRecord.read("results/sample/softmax/0/record.json").recall
    assert [(row.task, row.size, row.items) for row in rows] == [
        ("copy", 8, 3),
        ("phone_book", 3, 3),
        ("phone_book", 4, 3),
    ]
    assert all(row.accuracy == row.teacher_accuracy for row in rows)
    assert len(wrote) == 2 * 3


WRONG = {
    "a long passage": ({"copy": [5000]}, "sample.recall.copy: 5000 is not possible: no document has 5000 tokens, the longest has "),
    "a passage too long": ({"copy": [300]}, f"tokens, the teacher has {POSITIONS} positions"),
    "many names": ({"phone_book": [99]}, "sample.recall.phone_book: 99 is not possible: "),
    "two names": ({"phone_book": [2]}, "params.yaml: sample: recall.phone_book: 2 is below the least of 3"),
    "not written": ({"needle": [99]}, "'sample.recall.needle"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_asked_is_refused_in_one_line(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, case: str
) -> None:
    recall, expected = WRONG[case]
    lengthen(workspace)
    workspace.run("tokenize", "cache-logits", "distill softmax")
    workspace.set(sample={"recall": recall})
    monkeypatch.setattr("sys.argv", ["attnopt", "sample", "softmax"])
    with pytest.raises(SystemExit) as ended:
        main()
    line = capsys.readouterr().err.strip().split("\n")[-1]
    assert ended.value.code == 2
    assert line.startswith("attnopt: ")
    assert expected in line
    assert not Path("results/sample").exists()
