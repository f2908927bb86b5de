"""The budget of state, from params.yaml to a student that says what it holds and can be read again."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Workspace
from families import teacher as make_teacher

import attnopt
from attnopt import settings as params
from attnopt.core.errors import UserError
from attnopt.records.distill import DistillRecord, StudentCard
from attnopt.student.attach import attach, mechanisms_of
from attnopt.student.budget import state_share
from attnopt.student.params import StateParams
from attnopt.student.swap import Swap
from attnopt.training.jobs import training_jobs

EIGHTH = StateParams(share=0.125, length=1024)


def swapped(kind: str, options: Any = None, family: str = "llama gqa", **more: Any) -> Any:
    return attach(copy.deepcopy(make_teacher(family)), Swap(kind, options or {}, **more))


@pytest.mark.parametrize("family", ["gpt2", "llama gqa", "llama mqa"])
@pytest.mark.parametrize("kind", ["window", "performer", "hedgehog", "masks"])
def test_every_layer_of_a_student_fills_its_budget(family: str, kind: str) -> None:
    found = mechanisms_of(swapped(kind, family=family, state=EIGHTH))
    assert len({m.options for m in found if kind != "masks"}) <= 1
    for m in found:
        each = m.state_bytes(1, 1024, torch.float32) / (2 * m.geometry.kv_heads * 8 * 4 * 1024)
        assert 0.12 < each <= 0.125
    assert 0.12 < state_share(found, 1024, torch.float32) <= 0.125


def test_a_budget_is_in_the_models_own_precision() -> None:
    model = make_teacher("llama gqa").to(torch.bfloat16)
    assert mechanisms_of(attach(model, Swap("window", state=EIGHTH)))[0].options.window == 125
    model = make_teacher("llama gqa").to(torch.bfloat16)
    half = mechanisms_of(attach(model, Swap("performer", state=EIGHTH)))[0].options.features
    full = mechanisms_of(swapped("performer", state=EIGHTH))[0].options.features
    assert half == full // 2  # its sums stay float32


@pytest.mark.parametrize("state", [None, StateParams(), StateParams(length=9)])
def test_without_a_share_options_are_as_they_were(state: StateParams | None) -> None:
    assert mechanisms_of(swapped("window", state=state))[0].options.window == 16


def test_options_that_are_given_win_in_either_form() -> None:
    options = type(mechanisms_of(swapped("hedgehog"))[0]).Options(window=8)
    for given in (options, {"window": 8}):
        found = mechanisms_of(swapped("hedgehog", given, state=EIGHTH))[0].options
        assert (found.window, found.feature_dim) == (8, 106)


def test_layers_that_keep_softmax_count_in_the_students_share() -> None:
    found = mechanisms_of(swapped("window", layers=[1], state=EIGHTH))
    assert [m.kind for m in found] == ["softmax", "window", "softmax"]
    assert found[1].options.window == 125
    assert state_share(found, 1024, torch.float32) == pytest.approx((2 + 0.125) / 3)


def test_what_cannot_be_within_is_refused_and_leaves_the_model_as_it_was() -> None:
    model = make_teacher("llama gqa")
    message = (
        "window: window 300, sinks 4: 38784 bytes a layer at 1024 tokens, and 16384 are allowed "
        "(state.share 0.125 of softmax's)"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        attach(model, Swap("window", {"window": 300}, state=EIGHTH))
    with pytest.raises(UserError, match=r"layers: \[7\] do not exist"):
        attach(model, Swap("window", layers=[7], state=EIGHTH))
    attach(model, Swap("window"))


@pytest.fixture
def budgeted(workspace: Workspace) -> Workspace:
    """A workspace with a budget, and variants that obey it, that are free of it, and that cannot obey."""
    still = {"distill": {"steps": 0}}
    workspace.set(
        variants={"hedgehog": "hedgehog", "free": "window", "nsa": "nsa", "none": "none"},
        state={"share": 0.25, "length": 64},
        hedgehog=still,
        free={**still, "state": {"share": None}, "window": 40},
        nsa=still,
        none=still,
    )
    return workspace


def test_card_and_record_hold_what_was_chosen_and_how_much_it_is(budgeted: Workspace) -> None:
    budgeted.run("tokenize", "cache-logits", *(f"distill {n}" for n in ("hedgehog", "free", "nsa", "none")))
    shares = {}
    for name in ("hedgehog", "free", "nsa", "none"):
        card = StudentCard.read(f"models/{name}/0/student.json")
        record = DistillRecord.read(f"results/distill/{name}/0/record.json")
        mechanism = mechanisms_of(attnopt.load(Path(f"models/{name}/0")))[0]
        assert mechanism.options.model_dump() == card.options == record.options or name == "nsa"
        assert card.state_length == record.state_length == 64
        assert card.state_share == record.state_share == state_share([mechanism], 64, torch.float32)
        assert card.state_budget == record.state_budget
        shares[name] = (card.state_budget, card.state_share)
    assert shares["hedgehog"][0] == 0.25
    assert 0.2 < shares["hedgehog"][1] <= 0.25
    assert shares["free"] == (None, pytest.approx(43 / 64))
    assert shares["nsa"][0] is None
    assert shares["nsa"][1] >= 1
    assert shares["none"] == (0.25, 0)


def test_a_student_depends_on_its_budget_and_on_what_was_given(budgeted: Workspace) -> None:
    budgeted.run("tokenize", "cache-logits")

    def key() -> str:
        settings = params.load_settings()
        return training_jobs(settings.variant("hedgehog"), settings.teacher)[0].key

    keys = [key()]
    for changes in ({"window": 16}, {"state": {"share": 0.3}}, {"state": {"length": 32}}):
        budgeted.set(hedgehog=changes)
        keys.append(key())
    assert len(set(keys)) == 4  # window 16, although it is the default: a budget may not choose it then


def test_a_variant_over_its_budget_is_named(budgeted: Workspace) -> None:
    budgeted.set(hedgehog={"window": 60})
    budgeted.run("tokenize", "cache-logits")
    with pytest.raises(
        UserError, match=r"^hedgehog: hedgehog: window 60, .* at 64 tokens, and \d+ are allowed"
    ) as caught:
        budgeted.run("distill hedgehog")
    assert "\n" not in str(caught.value)
    assert not Path("models/hedgehog/0").exists()
