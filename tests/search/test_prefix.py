"""Passes that begin behind what mixes have in common, against whole passes; and a search that was killed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Workspace
from torch import nn

from attnopt import settings as params
from attnopt.core.checkpoint import Checkpoint
from attnopt.search.kept import KeptMeasures
from attnopt.search.mixable import Mixable
from attnopt.search.prefix import Prefix, blocks_of
from attnopt.search.probe import Measured
from attnopt.student.library import read_library
from attnopt.targets.dataset import load_dataset


@pytest.fixture
def mixable(workspace: Workspace) -> Mixable:
    """The teacher, two windows."""
    workspace.set(
        variants={"softmax": "softmax", "near": "window", "nearer": "window"},
        transfer={"steps": 0},
        distill={"steps": 0},
        near={"window": 2, "sinks": 1},
        nearer={"window": 5, "sinks": 0},
    )
    workspace.run("tokenize", "cache-logits", "distill near", "distill nearer")
    teacher = load_dataset(params.load_settings().teacher)[0].teacher
    return Mixable(teacher, {n: read_library(Path(f"library/{n}/0"), teacher) for n in ("near", "nearer")})


IDS = torch.arange(1, 41).reshape(2, 1, 20)


def logits(model: nn.Module) -> list[torch.Tensor]:
    """Two passes."""
    with torch.no_grad():
        return [model(input_ids=ids, use_cache=False).logits for ids in IDS]


def test_a_pass_that_begins_behind_common_layers_is_the_whole_pass(mixable: Mixable) -> None:
    prefix = Prefix(mixable, logits)
    ran: list[int] = []
    for index, block in enumerate(blocks_of(mixable.model, mixable.places)):
        block.mlp.register_forward_pre_hook(lambda *_, at=index: ran.append(at))
    order = [((0, 1), 0), ((0, 2), 1), ((0, 0), 1), ((1, 0), 0), ((1, 2), 1), ((1, 1), 1), ((0, 1), 1), ((2, 1), 0)]
    for mix, keep in order:
        found = prefix.run(mix, keep)
        whole = logits(mixable.mixed(mix))
        assert all(torch.equal(one, other) for one, other in zip(found, whole, strict=True))
    ran.clear()
    prefix.run((2, 1), keep=1)
    prefix.run((2, 2), keep=1)
    assert ran == [0, 1, 0, 1, 1, 1]


def test_a_kill_in_a_pass_leaves_what_was_kept(mixable: Mixable) -> None:
    prefix = Prefix(mixable, lambda model: logits(model) if mixable.mechanism(0, 0) else [])
    prefix.run((0, 1), keep=1)
    own, prefix.measure = prefix.measure, lambda model: 1 / 0
    with pytest.raises(ZeroDivisionError):
        prefix.run((1, 1), keep=1)
    prefix.measure = own
    assert torch.equal(prefix.run((0, 2), keep=1)[1], logits(mixable.mixed((0, 2)))[1])


def test_what_was_measured_is_there_for_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNOPT_CHECKPOINTS", str(tmp_path))
    monkeypatch.setattr("attnopt.search.kept.EVERY", 0.0)
    checkpoint = Checkpoint("search")
    with checkpoint.locked():
        kept, rng = KeptMeasures(checkpoint), np.random.default_rng(0)
        for mix in ((0, 1), (2, 0)):
            kept[mix] = Measured(rng.random(3), rng.random(2))
    again = KeptMeasures(Checkpoint("search"))
    assert again.keys() == kept.keys()
    assert all(np.array_equal(again[mix].pieces, kept[mix].pieces) for mix in kept)
    assert all(np.array_equal(again[mix].lists, kept[mix].lists) for mix in kept)
    checkpoint.remove()
    assert not KeptMeasures(Checkpoint("search"))
