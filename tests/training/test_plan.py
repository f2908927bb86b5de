"""Which phases run, how long, and which students are kept on the way."""

import pytest
from conftest import Workspace

from attnopt import settings as params
from attnopt.core.errors import UserError
from attnopt.training.params import Variant
from attnopt.training.phases import PHASES
from attnopt.training.plan import make_plan
from training.world import record


def variant(workspace: Workspace, **sections: object) -> Variant:
    workspace.set(**sections)
    return params.load_settings().variant("none")


def test_phases_without_steps_or_without_anything_to_train_are_left_out(workspace: Workspace) -> None:
    chosen = variant(workspace, transfer={"steps": 5}, align={"steps": 3}, distill={"steps": 7})
    assert make_plan(chosen, 100, PHASES).phases == {"transfer": 5, "align": 3, "distill": 7}
    plan = make_plan(chosen, 100, ["distill", "transfer"])
    assert list(plan.phases.items()) == [("transfer", 5), ("distill", 7)]
    assert plan.steps == 12


def test_epochs_are_counted_in_the_blocks_that_there_are(workspace: Workspace) -> None:
    chosen = variant(workspace, distill={"steps": None, "epochs": 1.5, "batch": 4})
    assert make_plan(chosen, 10, PHASES).phases == {"distill": 4}


def test_marks_are_shares_of_all_steps_and_never_the_start_or_the_end(workspace: Workspace) -> None:
    chosen = variant(workspace, transfer={"steps": 10}, distill={"steps": 10, "keep": [0.01, 0.25, 0.5, 0.99]})
    assert make_plan(chosen, 100, PHASES).marks == {5, 10}


def test_the_last_share_of_all_steps_is_long_whichever_phase_it_falls_in(workspace: Workspace) -> None:
    workspace.set(corpus={"long_block": 64})
    chosen = variant(workspace, transfer={"steps": 12}, align={"steps": 3}, distill={"steps": 5, "long_share": 0.5})
    assert make_plan(chosen, 100, PHASES).long == {"transfer": 2, "align": 3, "distill": 5}
    assert make_plan(chosen, 100, ["transfer"]).long == {"transfer": 6}
    chosen = variant(workspace, distill={"long_share": 0.1})
    assert make_plan(chosen, 100, PHASES).long == {"transfer": 0, "align": 0, "distill": 2}
    assert not any(make_plan(variant(workspace, distill={"long_share": 0}), 100, PHASES).long.values())


def test_nothing_to_train_leaves_a_student_as_it_was_swapped_in(workspace: Workspace) -> None:
    workspace.set(distill={"train": "mechanism"})
    workspace.run("tokenize", "cache-logits", "distill none")
    assert (record("none")["phases"], record("none")["budget"]["steps"]) == ([], 0)
    assert record("none")["kl_end"] == record("none")["kl_start"]


def test_a_student_may_be_kept_up_to_where_lora_begins(workspace: Workspace) -> None:
    chosen = variant(workspace, distill={"steps": 10, "keep": [0.5]}, lora={"steps": 10})
    assert make_plan(chosen, 100, PHASES).marks == {10}
    assert make_plan(variant(workspace, distill={"keep": [0.9]}), 100, ["distill"]).marks == {9}


def test_no_student_is_kept_within_lora(workspace: Workspace) -> None:
    workspace.set(distill={"steps": 10, "keep": [0.5, 0.9]}, lora={"steps": 10})
    with pytest.raises(UserError, match=r"none: distill\.keep: 0\.9 of 20 steps lies within the phase lora"):
        make_plan(params.load_settings().variant("none"), 100, PHASES)
