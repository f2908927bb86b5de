"""The phases: each lowers what it says it minimises, moves only what it may, and leaves a plain student."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import Workspace
from safetensors.torch import load_file

import attnopt
from attnopt import settings as params
from attnopt.core.errors import UserError
from attnopt.mechanisms.base import Inputs
from attnopt.student import build as student
from attnopt.student.attach import mechanisms_of
from attnopt.student.calls import attention_weights
from attnopt.student.layers import attention_layers
from attnopt.targets.dataset import load_dataset
from attnopt.training.params import PhaseName
from attnopt.training.phases import PHASES, Objective

NOTHING = {"steps": 0}


@pytest.fixture
def prepared(workspace: Workspace) -> Workspace:
    workspace.set(variants={"softmax": "softmax", "none": "none", "hedgehog": "hedgehog"}, hedgehog={"window": 0})
    workspace.set(distill={"steps": 0})
    workspace.run("tokenize", "cache-logits")
    return workspace


def record(variant: str) -> dict:
    return json.loads(Path(f"results/distill/{variant}/0/record.json").read_text())


def objective(name: PhaseName, variant: str = "hedgehog") -> tuple[Objective, torch.Tensor]:
    settings = params.load_settings()
    loaded, _ = load_dataset(settings.teacher)
    chosen = settings.variant(variant)
    built = student.build_student(loaded.teacher, chosen.swap, 0)
    ids = torch.from_numpy(loaded.blocks["train"][:2].astype("int64"))
    return PHASES[name](built, loaded, chosen, chosen.runs()[0], torch.float32), ids


@pytest.mark.parametrize("name", ["transfer", "align"])
def test_an_unchanged_softmax_student_has_nothing_to_match(prepared: Workspace, name: str) -> None:
    same, ids = objective(name, "softmax")
    changed, _ = objective(name, "none")
    assert float(same(ids, None)[0]) < 1e-9
    assert float(changed(ids, None)[0]) > 1e-3


def test_transfer_feeds_every_layer_the_teachers_own_inputs(prepared: Workspace) -> None:
    """Against the obvious way: layer by layer, from the teacher's hidden states."""
    transfer, ids = objective("transfer")
    teacher = transfer.dataset.teacher
    hidden = teacher.base_model(input_ids=ids, output_hidden_states=True).hidden_states
    errors = []
    for layer, block, x in zip(attention_layers(transfer.student), teacher.transformer.h, hidden[:-1], strict=True):
        normed = block.ln_1(x)
        ours, theirs = layer(normed, attention_mask=None)[0], block.attn(normed, attention_mask=None)[0]
        errors += [(a - b).square().sum() / b.square().sum() for a, b in zip(ours, theirs, strict=True)]
    torch.testing.assert_close(transfer(ids, None)[0], torch.stack(errors).mean(), rtol=1e-4, atol=1e-6)


def test_each_layer_learns_from_its_own_output_alone(prepared: Workspace) -> None:
    transfer, ids = objective("transfer")
    transfer.begin()
    first, second = mechanisms_of(transfer.student)[:2]
    with torch.no_grad():
        second.query_weight.mul_(3.0)
    transfer(ids, None)[0].backward()
    shifted = first.query_weight.grad.clone()
    other, _ = objective("transfer")
    other.begin()
    other(ids, None)[0].backward()
    torch.testing.assert_close(shifted, mechanisms_of(other.student)[0].query_weight.grad)


def test_attention_weights_are_those_that_give_the_output(prepared: Workspace) -> None:
    mechanism = mechanisms_of(objective("transfer")[0].student)[0]
    g = mechanism.geometry
    q, k, v = (torch.randn(2, g.heads, 9, g.head_dim) for _ in range(3))
    expected = mechanism(Inputs(q, k, v), keeps_state=False)[0]
    with attention_weights(mechanism) as weights:
        out, _ = mechanism(Inputs(q, k, v), keeps_state=False)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights[0] @ v, expected, rtol=1e-4, atol=1e-5)
    assert weights[0].triu(1).abs().max() == 0
    assert torch.equal(mechanism(Inputs(q, k, v), keeps_state=False)[0], expected)


def test_softmax_weights_have_no_divergence_from_themselves(prepared: Workspace) -> None:
    prepared.set(transfer={"loss": "weights"})
    same, ids = objective("transfer", "softmax")
    assert abs(float(same(ids, None)[0])) < 1e-6


def test_weights_are_refused_where_there_are_none(prepared: Workspace) -> None:
    prepared.set(transfer={"loss": "weights", "steps": 3})
    with pytest.raises(UserError, match=r"none.transfer.loss: 'weights' needs attention weights .* allowed: outputs"):
        prepared.run("distill none")


@pytest.mark.parametrize(
    ("phase", "settings"),
    [("transfer", {"loss": "outputs"}), ("transfer", {"loss": "both"}), ("align", {}), ("lora", {})],
)
def test_a_phase_lowers_its_loss_and_the_kl(prepared: Workspace, phase: str, settings: dict) -> None:
    prepared.set(**{phase: {"steps": 60, "lr": 0.01} | settings})
    prepared.run("distill hedgehog")
    found = record("hedgehog")
    history = pd.read_csv("results/distill/hedgehog/0/history.csv")
    assert [p["phase"] for p in found["phases"]] == [phase]
    assert history.loss.iloc[-1] < 0.9 * history.loss.iloc[0]
    assert found["kl_end"] < found["kl_start"]
    assert found["phases"][0]["flops"] > 0


def test_phases_follow_each_other_and_their_steps_run_on(prepared: Workspace) -> None:
    prepared.set(transfer={"steps": 4, "warmup": 1}, align={"steps": 4, "warmup": 1}, lora={"steps": 4, "warmup": 1})
    prepared.set(distill={"steps": 6})
    prepared.run("distill hedgehog")
    history = pd.read_csv("results/distill/hedgehog/0/history.csv")
    assert history.phase.drop_duplicates().tolist() == ["transfer", "align", "distill", "lora"]
    assert history.groupby("phase", sort=False).step.max().tolist() == [4, 8, 14, 18]
    assert history[history.phase == "transfer"].kl.isna().all()
    assert sum(p["steps"] for p in record("hedgehog")["phases"]) == record("hedgehog")["budget"]["steps"] == 18


def test_adapters_are_merged_and_gone(prepared: Workspace) -> None:
    prepared.set(lora={"steps": 8, "lr": 0.01, "targets": ["c_proj"]})
    prepared.run("distill hedgehog")
    moved = set(load_file("models/hedgehog/0/weights.safetensors"))
    assert not [n for n in moved if "lora" in n or "base_layer" in n]
    assert {n.split(".")[-2] for n in moved if ".mechanism." not in n} == {"c_proj"}
    assert attnopt.load("models/hedgehog/0").generate(torch.tensor([[5, 6]]), max_new_tokens=2).shape == (1, 4)


def test_adapters_on_nothing_are_a_mistake(prepared: Workspace) -> None:
    prepared.set(lora={"steps": 8, "targets": ["v_proj"]})
    with pytest.raises(
        UserError, match=r"lora.targets: \['v_proj'\] are no projections of this model; it has c_attn, c_proj"
    ):
        prepared.run("distill hedgehog")


def test_a_random_start_has_none_of_the_teachers_attention(prepared: Workspace) -> None:
    prepared.set(hedgehog={"weights": "random"})
    prepared.run("distill hedgehog")
    drawn = record("hedgehog")["kl_start"]
    assert record("hedgehog")["start"] == "random"
    prepared.set(hedgehog={"weights": "teacher"})
    prepared.run("distill hedgehog")
    assert drawn > 2 * record("hedgehog")["kl_start"]


def test_cross_entropy_alone_fine_tunes_the_teacher(prepared: Workspace) -> None:
    prepared.set(softmax={"distill": {"steps": 40, "kl": "none", "ce_weight": 1.0, "train": "all", "lr": 0.003}})
    prepared.run("distill softmax", "evaluate softmax")
    splits = json.loads(Path("results/evaluate/softmax/0/record.json").read_text())["splits"]
    assert splits["valid"]["ce"] < splits["valid"]["teacher_ce"]
    assert splits["valid"]["kl_forward"] > 0.001


def test_patience_stops_and_keeps_the_best(prepared: Workspace) -> None:
    prepared.set(distill={"steps": 200, "lr": 3.0, "warmup": 0, "valid_every": 2, "log_every": 2, "patience": 3})
    prepared.run("distill hedgehog")
    found, history = record("hedgehog"), pd.read_csv("results/distill/hedgehog/0/history.csv")
    assert found["budget"]["steps"] < 200
    assert found["kl_end"] == pytest.approx(history.valid_kl.min(), abs=1e-5)


def test_seeds_of_data_and_of_features_are_apart(prepared: Workspace) -> None:
    prepared.set(seeds=[3, 4], seed={"data": 7})
    runs = params.load_settings().variant("hedgehog").runs()
    assert [(r.run, r.data, r.features) for r in runs] == [(3, 7, 3), (4, 7, 4)]
    prepared.set(seed={"data": None, "features": 1}, hedgehog={"seeds": [5]})
    assert [tuple(r) for r in params.load_settings().variant("hedgehog").runs()] == [(5, 5, 1)]
