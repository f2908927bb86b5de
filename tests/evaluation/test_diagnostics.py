"""Probes against obvious references: whole logits, a switched student built anew, a coefficient set to zero."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Workspace

from attnopt import mechanisms
from attnopt.core.files import read_json
from attnopt.evaluation.diagnostics import Diagnostics
from attnopt.evaluation.params import EvaluateParams
from attnopt.records.evaluate import LayerRow
from attnopt.student import build as students
from attnopt.student.attach import attach, mechanisms_of
from attnopt.student.swap import Swap
from attnopt.teacher import model as teacher
from attnopt.teacher.head import head_of
from attnopt.teacher.params import TeacherParams

HYBRIDS = ["based", "hedgehog", "linformer", "nsa", "routing"]


@pytest.fixture(scope="module")
def original(tiny: Path) -> Any:
    return teacher.load_teacher(TeacherParams(source="path", path=str(tiny / "teacher")))[0]


@pytest.fixture(scope="module")
def blocks() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 300, (6, 32))


@pytest.fixture(scope="module")
def probes(original: Any, blocks: np.ndarray) -> Diagnostics:
    """Four blocks to measure on, two at a time, four to fit to."""
    settings = EvaluateParams(batch=2, probe_blocks=4, features=[4, 64], draws=2)
    return Diagnostics(original, blocks, blocks[2:], settings)


@pytest.fixture(scope="module")
def student_of(original: Any, blocks: np.ndarray) -> Callable[..., Any]:
    def build(kind: str, layers: list[int] | None = None, **options: Any) -> Any:
        student = attach(copy.deepcopy(original), Swap(kind, options, layers))
        students.fit_mechanisms(mechanisms_of(student), original, blocks[2:])
        return student

    return build


@torch.no_grad()
def plain_kl(original: Any, student: Any, blocks: np.ndarray) -> np.ndarray:
    """(n, T - 1) from all logits at once."""
    ids = torch.from_numpy(blocks)
    log_p, log_q = (m(ids).logits[:, :-1].log_softmax(-1) for m in (original, student))
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).numpy()


def test_kl_is_that_of_the_whole_logits(
    probes: Diagnostics, original: Any, student_of: Any, blocks: np.ndarray
) -> None:
    student = student_of("none")
    found = probes.kl(student, head_of(student))
    np.testing.assert_allclose(found, plain_kl(original, student, blocks[:4]), atol=1e-4)


def test_an_unchanged_student_has_no_layer_error(probes: Diagnostics, student_of: Any) -> None:
    assert probes.layers(student_of("softmax")) == [LayerRow(layer=0, error=0), LayerRow(layer=1, error=0)]


@torch.no_grad()
def test_layer_errors_on_the_teachers_own_inputs(probes: Diagnostics, original: Any, student_of: Any, blocks: np.ndarray) -> None:  # fmt: skip
    """The second layer is right and the first is not: on the student's own inputs both would be off."""
    student = student_of("none", layers=[0])
    rows = probes.layers(student)
    hidden = original.transformer(torch.from_numpy(blocks[:4]), output_hidden_states=True).hidden_states
    normed = original.transformer.h[0].ln_1(hidden[0])
    ours, theirs = (m.transformer.h[0].attn(normed)[0] for m in (student, original))
    expected = ((ours - theirs).square().sum() / theirs.square().sum()).item()
    assert rows[0].error == pytest.approx(expected, rel=1e-4)
    assert rows[1].error == 0
    assert expected > 0.1


@pytest.mark.parametrize("kind", HYBRIDS)
def test_each_set_of_branches_alone_is_a_student_built_with_it(
    kind: str, probes: Diagnostics, original: Any, student_of: Any, blocks: np.ndarray
) -> None:
    student = student_of(kind, window=4) if kind != "linformer" else student_of(kind, segment=4, slots=2)
    before = plain_kl(original, student, blocks)
    rows = probes.branches(student)
    field = mechanisms.load_mechanism(kind).Options.model_fields["branches"]
    assert [row.branches for row in rows] == list(get_args(field.annotation))
    whole = plain_kl(original, student, blocks[:4])
    assert rows[0].kl_forward == pytest.approx(whole.mean(), abs=1e-4)
    assert rows[0].difference_se == 0
    for row in rows:
        assert row.blocks == 4
        built = student_of(kind, **mechanisms_of(student)[0].options.model_dump() | {"branches": row.branches})
        weights = student.state_dict()
        built.load_state_dict({name: weights[name] for name in built.state_dict()})
        expected = plain_kl(original, built, blocks[:4])
        assert row.kl_forward == pytest.approx(expected.mean(), abs=1e-4)
        assert row.kl_forward_se == pytest.approx(expected.mean(1).std(ddof=1) / 2, abs=1e-4)
        assert row.difference_se == pytest.approx((expected - whole).mean(1).std(ddof=1) / 2, abs=1e-4)
    np.testing.assert_array_equal(plain_kl(original, student, blocks), before)


def test_what_equals_softmax_with_both_branches_does_not_with_one(probes: Diagnostics, student_of: Any) -> None:
    student = student_of("linformer", segment=4, slots=4)
    assert probes.kl(student, head_of(student)).mean() < 1e-6
    whole, *parts = probes.branches(student)
    assert whole.kl_forward < 1e-6
    assert all(row.kl_forward > 1e-3 for row in parts)


def test_no_branches_where_there_is_nothing_to_tell_apart(probes: Diagnostics, student_of: Any) -> None:
    assert probes.branches(student_of("softmax")) == []
    assert probes.branches(student_of("hedgehog", window=0)) == []
    assert probes.branches(student_of("nsa", branches="tokens")) == []
    assert len(probes.branches(student_of("routing", layers=[1]))) == 3


@torch.no_grad()
def test_pruning_is_a_coefficient_of_zero(
    probes: Diagnostics, original: Any, student_of: Any, blocks: np.ndarray
) -> None:
    student = student_of("masks", candidates=("last:1", "last:2", "window:8"), per_head=True, start="random")
    for mechanism in mechanisms_of(student):
        mechanism.alpha[:, 0] += 5  # last:1 is the last to go, so that every row keeps itself
    rows = probes.pruned(student)
    assert [row.kept for row in rows] == [6, 5, 4, 3, 2]
    assert {row.of for row in rows} == {6}
    for row in rows:
        zeroed = copy.deepcopy(student)
        for mechanism in mechanisms_of(zeroed):
            small = mechanism.alpha.sigmoid().amax(0) < row.threshold
            mechanism.alpha[:, small] = -80
        kl = plain_kl(original, zeroed, blocks[:4])
        error = (kl - plain_kl(original, student, blocks[:4])).mean(1).std(ddof=1) / 2
        assert row.kl_forward == pytest.approx(kl.mean(), abs=1e-4)
        assert row.difference_se == pytest.approx(error, abs=1e-4)
    assert rows[-1].kl_forward > rows[0].kl_forward
    assert probes.pruned(student_of("softmax")) == []


def test_features_are_fresh_draws_on_the_untrained_teacher(
    probes: Diagnostics, original: Any, student_of: Any, blocks: np.ndarray
) -> None:
    student = student_of("performer", features=8)
    found = probes.features(student, seed=1)
    assert [(row.features, row.draw) for row in found] == [(4, 0), (4, 1), (64, 0), (64, 1)]
    for row in found:
        swap = Swap("performer", {"features": row.features})
        drawn = attach(copy.deepcopy(original), swap, seed=2 + row.draw)
        students.fit_mechanisms(mechanisms_of(drawn), original, blocks[2:])
        assert row.kl_forward == pytest.approx(plain_kl(original, drawn, blocks[:4]).mean(), abs=1e-4)
    assert len({row.kl_forward for row in found}) == 4
    assert probes.features(student_of("masks"), seed=1) == []


def test_features_in_some_layers_leave_softmax_in_the_others(probes: Diagnostics, student_of: Any) -> None:
    one, both = (probes.features(student_of("performer", layers), seed=0) for layers in ([1], None))
    assert max(row.kl_forward for row in one) < min(row.kl_forward for row in both)


def test_the_stage_writes_all_answers(workspace: Workspace) -> None:
    workspace.set(variants={"hedgehog": "hedgehog"}, hedgehog={"window": 4, "seeds": [3]}, evaluate={"probe_blocks": 2})
    workspace.set(distill={"steps": 2})
    workspace.run("tokenize", "cache-logits", "distill hedgehog", "evaluate hedgehog")
    record = read_json("results/evaluate/hedgehog/3/record.json")
    assert [row["layer"] for row in record["layers"]] == [0, 1]
    assert [row["branches"] for row in record["branches"]] == ["both", "window", "far"]
    assert record["pruned"] == record["features"] == []
    for split in record["splits"].values():
        for by in ("frequency", "context"):
            assert sum(row["tokens"] for row in split["kl_by_class"] if row["by"] == by) == split["tokens"]
