"""The library that transfer leaves, and mixes trained from it: what they hold, when they are made again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Workspace
from safetensors.torch import load_file

import attnopt
from attnopt import settings as params
from attnopt.core.errors import UserError
from attnopt.records.distill import DistillRecord, StudentCard
from attnopt.records.evaluate import EvaluateRecord
from attnopt.student.attach import mechanisms_of
from attnopt.student.layers import attention_layers
from attnopt.training.jobs import training_jobs
from attnopt.training.trainer import Trainer

VARIANTS = {"near": "window", "free": "performer", "still": "none"}


@pytest.fixture
def mixing(workspace: Workspace) -> Workspace:
    """Two variants with a transfer, one that trains nothing, and a mix."""
    workspace.set(
        variants=VARIANTS,
        transfer={"steps": 3},
        distill={"steps": 3},
        near={"window": 4, "sinks": 1},
        free={"features": 8},
        still={"transfer": {"steps": 0}, "distill": {"steps": 0}},
        mixes={"mix": {"layers": {0: "free", 1: "near"}, "distill": {"steps": 2}}},
        evaluate={"probe_blocks": 1},
    )
    workspace.run("tokenize", "cache-logits", *(f"distill {name}" for name in VARIANTS))
    return workspace


def mix(workspace: Workspace) -> None:
    workspace.run("mix mix")


def layer_of(folder: str, layer: int) -> dict[str, torch.Tensor]:
    prefix = f"transformer.h.{layer}.attn."
    weights = load_file(Path(folder) / "weights.safetensors")
    return {name: tensor for name, tensor in weights.items() if name.startswith(prefix)}


def test_the_library_holds_students_as_transfer_left_them(mixing: Workspace) -> None:
    settings = params.load_settings()
    variant = settings.variant("near").model_copy(update={"distill": settings.distill.model_copy(update={"steps": 0})})
    from attnopt.targets.dataset import load_dataset

    dataset, _ = load_dataset(settings.teacher)
    expected = Trainer(dataset, variant, variant.runs()[0]).run()
    found = attnopt.load("library/near/0")
    ids = torch.arange(1, 12)[None]
    assert torch.equal(found(ids).logits, expected(ids).logits)
    assert not torch.equal(found(ids).logits, attnopt.load("models/near/0")(ids).logits)
    card = StudentCard.read("library/near/0/student.json")
    assert (card.key, card.options) == (StudentCard.read("models/near/0/student.json").key, {"window": 4, "sinks": 1})
    assert torch.equal(attnopt.load("library/still/0")(ids).logits, attnopt.load("models/still/0")(ids).logits)


def test_a_mix_begins_with_the_librarys_layers_and_trains_them_all(mixing: Workspace) -> None:
    mixing.set(mixes={"mix": {"layers": {0: "free", 1: "near"}, "distill": {"steps": 0}}})
    mix(mixing)
    for layer, whose in enumerate(("free", "near")):
        held, left = layer_of("models/mix/0", layer), layer_of(f"library/{whose}/0", layer)
        assert held.keys() == left.keys()
        assert all(torch.equal(held[name], left[name]) for name in left)
    mixing.set(mixes={"mix": {"layers": {0: "free", 1: "near"}, "distill": {"steps": 2}}})
    mix(mixing)
    for layer, whose in enumerate(("free", "near")):
        held, left = layer_of("models/mix/0", layer), layer_of(f"library/{whose}/0", layer)
        assert any(not torch.equal(held[name], left[name]) for name in left)


def test_a_mix_says_what_it_is_made_of_and_is_measured_as_any_student(mixing: Workspace) -> None:
    mix(mixing)
    card = StudentCard.read("models/mix/0/student.json")
    record = DistillRecord.read("results/distill/mix/0/record.json")
    assert [(p.variant, p.kind, p.layers) for p in card.parts] == [("free", "performer", [0]), ("near", "window", [1])]
    assert card.parts == record.parts
    assert [phase.phase for phase in record.phases] == ["distill"]
    assert [m.kind for m in mechanisms_of(attnopt.load("models/mix/0"))] == ["performer", "window"]
    assert not Path("library/mix").exists()
    mixing.run("evaluate mix")
    measured = EvaluateRecord.read("results/evaluate/mix/0/record.json")
    assert (measured.kind, measured.splits["test"].kl_forward > 0) == ("mixed", True)


def key(settings: Any) -> str:
    return training_jobs(settings.mix("mix"), settings.teacher, again=True)[0].key


def test_a_mix_is_made_again_where_a_variant_of_it_changed_and_only_there(mixing: Workspace) -> None:
    mix(mixing)
    settings = params.load_settings()
    assert not training_jobs(settings.mix("mix"), settings.teacher)
    before = key(settings)
    mixing.set(still={"transfer": {"steps": 0}, "distill": {"steps": 1}})
    mixing.run("distill still")
    assert key(settings) == before
    mixing.set(near={"window": 5, "sinks": 1})
    mixing.run("distill near")
    assert key(settings) != before
    assert training_jobs(settings.mix("mix"), settings.teacher)


def test_a_mix_of_what_is_not_there_or_too_large_is_refused(mixing: Workspace) -> None:
    for changes, message in (
        ({"layers": {4: "near"}}, r"^mix: layers: \[4\] do not exist, the model has 0 to 1"),
        ({"layers": {0: "near"}, "state": {"share": 0.2, "length": 32}}, r"^mix: its layers hold 0\.5\d+ of softmax's"),
    ):
        mixing.set(mixes={"mix": changes})
        with pytest.raises(UserError, match=message) as caught:
            mix(mixing)
        assert "\n" not in str(caught.value)
        assert not Path("models/mix").exists()
    mixing.set(variants={"later": "window"}, later={}, mixes={"mix": {"layers": {0: "later"}}})
    with pytest.raises(UserError, match=r"library/later holds no student: run `dvc repro distill@later` first"):
        mix(mixing)


@pytest.mark.parametrize("where", [2, 4])
def test_a_run_that_was_stopped_leaves_the_same_library(mixing: Workspace, where: int) -> None:
    """In transfer, and after it: the checkpoint holds what transfer left."""
    from attnopt.core.checkpoint import Checkpoint
    from attnopt.targets.dataset import load_dataset

    settings = params.load_settings()
    dataset, _ = load_dataset(settings.teacher)
    variant = settings.variant("free")
    variant = variant.model_copy(update={"distill": variant.distill.model_copy(update={"checkpoint_every": 1})})
    whole = Trainer(dataset, variant, variant.runs()[0])
    whole.run()

    class Stopped(Exception):
        pass

    checkpoint = Checkpoint("library-test")
    stopped = Trainer(dataset, variant, variant.runs()[0], checkpoint)
    update, count = stopped.update, iter(range(100))

    def stop(*args: Any) -> Any:
        if next(count) == where:
            raise Stopped
        return update(*args)

    stopped.update = stop  # type: ignore[method-assign]
    with checkpoint.locked(), pytest.raises(Stopped):
        stopped.run()
    resumed = Trainer(dataset, variant, variant.runs()[0], checkpoint)
    with checkpoint.locked():
        resumed.run()
    assert whole.transferred is not None
    assert resumed.transferred is not None
    assert whole.transferred.keys() == resumed.transferred.keys()
    assert all(torch.equal(resumed.transferred[name], tensor) for name, tensor in whole.transferred.items())
    assert attention_layers(resumed.student)
