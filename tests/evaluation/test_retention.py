"""Recall beside the teacher's: rows against slow loops, planted students, and what the stage writes and refuses."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Workspace, small_world
from planted import HEAD, VOCAB, Planted, documents_of
from world import POSITIONS, lengthen

from attnopt.cli import main
from attnopt.core.files import read_json
from attnopt.evaluation.params import EvaluateParams
from attnopt.evaluation.recall import Items
from attnopt.evaluation.retention import Drawn, Recall, design_effect, draw_items, queries_of, recall_row, retained
from attnopt.mechanisms import load_mechanism
from attnopt.mechanisms.base import Geometry
from attnopt.records.evaluate import EvaluateRecord, RecallRow
from attnopt.statistics import wilson

RECALL = {"copy": [0, 40], "pairs": [3], "phone_book": [3], "needle": [400]}


def rows_of(student: Planted, recall: dict[str, list[int]], teacher: Planted | None = None) -> list[RecallRow]:
    params = EvaluateParams(recall=recall, items=6)
    drawn = draw_items(params, documents_of([500, 600]), Letters(), 1000)
    return Recall(teacher or Planted(), HEAD, drawn, params, block=32).of(student, HEAD, "planted")


class Letters:
    def batch_decode(self, documents: object) -> list[str]:
        return []


def test_a_student_that_equals_the_teacher_retains_all_of_it() -> None:
    for row in rows_of(Planted(), {"copy": [0, 100]}):
        assert (row.accuracy, row.retention, row.retention_high, row.kl_answer, row.kl_answer_se) == (1, 1, 1, 0, 0)
        assert 0.97 < row.retention_low < 1  # 168 queries, none of them lost
        assert (row.items, row.queries, row.tokens) == (6, 6 * 28, 64 + row.size)


def test_a_student_that_forgets_loses_the_gaps_beyond_its_memory_and_no_other() -> None:
    near, edge, far = rows_of(Planted(memory=64), {"copy": [0, 32, 33]})
    for row in (near, edge):
        assert (row.retention, row.kl_answer) == (1, 0)
    assert far.retention < 0.05
    assert far.kl_answer > 5
    assert far.nll > 5 > 0.1 > far.teacher_nll


def test_of_a_teacher_that_cannot_there_is_no_retention_but_a_kl() -> None:
    (row,) = rows_of(Planted(memory=10), {"copy": [100]}, teacher=Planted(memory=20))
    assert row.retention is row.retention_low is row.retention_high is None
    assert row.teacher_accuracy < 0.1
    assert row.kl_answer == 0
    (row,) = rows_of(Planted(), {"copy": [100]}, teacher=Planted(memory=20))
    assert row.accuracy == 1
    assert row.kl_answer > 5


def test_a_row_is_that_of_the_slow_loop() -> None:
    """Three items of one to three queries, of several tokens each."""
    rng = np.random.default_rng(0)
    answers = torch.tensor([[-1, 0, 0, -1, 1, 1, 2], [-1, -1, 0, 0, 0, -1, -1], [-1, 4, 4, -1, 2, -1, -1]])
    items = Items(torch.randint(VOCAB, (3, 7)), answers, answers < -1)
    n = int((answers >= 0).sum())
    measures = {name: rng.exponential(size=n).astype(np.float32) for name in ("kl_forward", "ce", "teacher_ce")}
    right = [[True, False, True, True, True], [True, True, False], [False, False, True]]
    measures |= {"right": np.concatenate(right), "teacher_right": np.ones(n, bool)}
    row = recall_row(Drawn("pairs", 3, items), measures)
    places = [(i, int(answers[i, t])) for i in range(3) for t in range(7) if answers[i, t] >= 0]
    asked = sorted(set(places))
    held = [all(measures["right"][j] for j, place in enumerate(places) if place == query) for query in asked]
    assert (row.queries, row.items, row.tokens) == (len(asked), 3, 7)
    assert row.accuracy == sum(held) / len(held) == 0.5
    assert row.teacher_accuracy == 1
    assert row.kl_answer == pytest.approx(measures["kl_forward"].mean(), rel=1e-6)
    off = [sum(measures["kl_forward"][j] - row.kl_answer for j, (i, _) in enumerate(places) if i == item) for item in range(3)]  # fmt: skip
    assert row.kl_answer_se == pytest.approx((3 / 2 * sum(x * x for x in off)) ** 0.5 / n, rel=1e-5)
    assert queries_of(items).item.tolist() == [i for i, _ in asked]


def test_queries_of_one_item_count_as_fewer_where_they_go_together() -> None:
    item, alike = np.repeat(np.arange(20), 8), np.repeat(np.arange(20) % 2 == 0, 8)
    assert design_effect(alike, item) == pytest.approx(8, rel=0.1)
    apart = np.tile([True, False] * 4, 20)
    assert design_effect(apart, item) == 1
    assert design_effect(np.ones(160, bool), item) == 1
    teacher = np.ones(160, bool)
    widths = [retained(right, teacher, item)["retention_high"] - retained(right, teacher, item)["retention_low"] for right in (alike, apart)]  # fmt: skip
    assert widths[0] > 2 * widths[1]


def test_retention_is_over_the_teachers_accuracy() -> None:
    item = np.arange(20)
    right, teacher = item < 9, item < 18
    found = retained(right, teacher, item)
    low, high = wilson(9 / 20, 20)
    assert found["retention"] == pytest.approx(0.5)
    assert (found["retention_low"], found["retention_high"]) == pytest.approx((low / 0.9, high / 0.9))


def test_the_stage_measures_at_length_and_recall_and_says_what_the_state_takes(workspace: Workspace) -> None:
    lengthen(workspace, lengths=[100, 64], documents=3, recall=RECALL, items=4)
    workspace.set(variants={"window": "window"}, window={"window": 8, "sinks": 2, "layers": [1]})
    workspace.run(
        "tokenize", "cache-logits", "distill softmax", "distill window", "evaluate softmax", "evaluate window"
    )
    softmax, window = (EvaluateRecord.read(f"results/evaluate/{name}/0/record.json") for name in ("softmax", "window"))
    assert [(row.length, row.blocks, row.tokens) for row in window.lengths] == [(100, 3, 297), (64, 3, 189)]
    assert [(row.task, row.size) for row in window.recall] == [(t, n) for t, sizes in RECALL.items() for n in sizes]
    assert all(row.kl_forward == pytest.approx(0, abs=1e-5) for row in softmax.lengths)
    assert all(row.kl_answer == pytest.approx(0, abs=1e-5) for row in softmax.recall)
    assert all(row.kl_forward > 1e-4 for row in window.lengths)
    kept, swapped = (
        declared(kind, **options) for kind, options in (("softmax", {}), ("window", {"window": 8, "sinks": 2}))
    )
    assert softmax.state_bytes == {length: 2 * kept(length) for length in (100, 64)}
    assert window.state_bytes == {length: kept(length) + swapped(length) for length in (100, 64)}
    before = [row.digest for row in window.recall]
    assert [row.digest for row in softmax.recall] == before
    assert len(set(before)) == len(before)
    workspace.set(evaluate={"seed": 1})
    workspace.run("evaluate window")
    again = EvaluateRecord.read("results/evaluate/window/0/record.json")
    assert not set(before) & {row.digest for row in again.recall}
    for record in read_json("results/evaluate/window/0/record.json")["checkpoints"]:
        assert set(record["splits"]) == {"test"}


def declared(kind: str, **options: int) -> Callable[[int], int]:
    """Bytes of one layer's state by length."""
    cls = load_mechanism(kind)
    geometry = Geometry(heads=4, kv_heads=4, head_dim=8, hidden=32, scaling=8**-0.5)
    return lambda length: cls(geometry, cls.Options(**options)).state_bytes(1, length, torch.float32)


WRONG = {
    "beyond the positions": ({"lengths": [64, POSITIONS + 1]}, f"evaluate.lengths: 513 exceeds the teacher's {POSITIONS} positions"),
    "no such document": ({"lengths": [400]}, "evaluate.lengths: no document of the test split has 400 tokens, the longest has "),
    "no such passage": ({"recall": {"copy": [400]}}, "evaluate.recall.copy: 400 is not possible: no document has 432 tokens, the longest has "),
    "few words": ({"recall": {"pairs": [99]}}, "evaluate.recall.pairs: 99 is not possible: "),
    "few names": ({"recall": {"phone_book": [2]}}, "params.yaml: evaluate: recall.phone_book: 2 is below the least of 3"),
    "a short needle": ({"recall": {"needle": [30]}}, "evaluate.recall.needle: 30 is not possible: 30 tokens, "),
    "a long needle": ({"recall": {"needle": [2000]}}, "evaluate.recall.needle: 2000 makes "),
    "no such task": ({"recall": {"copying": [3]}}, "'evaluate.recall.copying"),
    "a short length": ({"lengths": [1]}, "'evaluate.lengths.0' is 1: input should be greater than or equal to 8"),
}  # fmt: skip


@pytest.fixture(scope="module")
def distilled(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A world with a student and a test split of one short document of few words."""
    with pytest.MonkeyPatch.context() as patched:
        workspace = small_world(tiny, tmp_path_factory.mktemp("distilled"), patched)
        lengthen(workspace)
        text = "Anna found the old king near the river and the small house .\n"
        (workspace.path / "text" / "test.txt").write_text(text * 10)
        workspace.run("tokenize", "cache-logits", "distill softmax")
        yield workspace


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_measured_is_refused_in_one_line_before_anything_is(
    distilled: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, case: str
) -> None:
    changes, expected = WRONG[case]
    distilled.set(evaluate={})
    distilled.set(evaluate=changes)
    monkeypatch.setattr("sys.argv", ["attnopt", "evaluate", "softmax"])
    with pytest.raises(SystemExit) as ended:
        main()
    line = capsys.readouterr().err.strip().split("\n")[-1]
    assert ended.value.code == 2
    assert line.startswith("attnopt: ")
    assert expected in line
    assert not Path("results/evaluate").exists()
