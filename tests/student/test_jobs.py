"""Evaluate and sample measure the students that changed, and no others."""

from pathlib import Path

import pytest
from conftest import Workspace

from attnopt.core.files import read_json

STAGES = ("evaluate", "sample")


@pytest.fixture
def measured(workspace: Workspace) -> Workspace:
    workspace.set(distill={"steps": 2}, evaluate={"probe_blocks": 1}, none={"seeds": [0, 1]})
    workspace.run("tokenize", "cache-logits", "distill softmax", "distill none", *STAGES)
    return workspace


def stamps() -> dict[str, int]:
    """When each record was written."""
    return {
        str(p.parent.relative_to("results")): p.stat().st_mtime_ns for p in Path("results").glob("[es]*/*/*/*.json")
    }


def remade(before: dict[str, int]) -> set[str]:
    return {name for name, stamp in stamps().items() if stamp != before.get(name)}


def test_records_that_hold_stay(measured: Workspace) -> None:
    before = stamps()
    assert set(before) == {f"{stage}/{student}" for stage in STAGES for student in ("softmax/0", "none/0", "none/1")}
    measured.run(*STAGES)
    assert not remade(before)


@pytest.mark.slow
def test_a_student_that_changed_is_measured_again_and_no_other(measured: Workspace) -> None:
    before = stamps()
    measured.set(none={"seeds": [0, 1], "distill": {"lr": 0.01}})
    measured.run("distill none", *STAGES)
    assert remade(before) == {f"{stage}/none/{seed}" for stage in STAGES for seed in (0, 1)}


@pytest.mark.slow
def test_other_settings_are_measured_again_where_they_count(measured: Workspace) -> None:
    before = stamps()
    measured.set(evaluate={"batch": 8})
    measured.run(*STAGES)
    assert remade(before) == {f"evaluate/{student}" for student in ("softmax/0", "none/0", "none/1")}


@pytest.mark.slow
def test_a_record_that_was_lost_is_made_again(measured: Workspace) -> None:
    before = stamps()
    Path("results/sample/none/1/record.json").unlink()
    measured.run(*STAGES)
    assert remade(before) == {"sample/none/1"}


@pytest.mark.slow
def test_records_of_students_that_are_no_more_are_removed(measured: Workspace) -> None:
    gone = Path("results/sample/of_old/0")
    gone.mkdir(parents=True)
    (gone / "record.json").write_text("{}")
    measured.set(none={"seeds": [1]})
    measured.run("distill none", *STAGES)
    assert set(stamps()) == {f"{stage}/{student}" for stage in STAGES for student in ("softmax/0", "none/1")}
    assert not gone.parent.exists()


@pytest.mark.slow
def test_a_variant_that_is_named_is_measured_in_any_case(measured: Workspace) -> None:
    before = stamps()
    measured.run("evaluate softmax")
    assert remade(before) == {"evaluate/softmax/0"}
    assert read_json("results/evaluate/softmax/0/record.json")["splits"]["test"]["kl_forward"] < 1e-6
