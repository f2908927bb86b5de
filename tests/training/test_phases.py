"""The phases: each lowers what it says it minimises, moves only what it may, and leaves a plain student."""

import pandas as pd
import pytest
from conftest import Workspace

from attnopt import settings as params
from attnopt.training.phases import PHASES
from training.world import record


@pytest.mark.parametrize(
    ("phase", "settings"),
    [("transfer", {"loss": "outputs"}), ("transfer", {"loss": "both"}), ("align", {}), ("lora", {})],
)
def test_a_phase_lowers_its_loss_and_the_kl(phased: Workspace, phase: str, settings: dict) -> None:
    phased.set(**{phase: {"steps": 60, "lr": 0.01} | settings})
    phased.run("distill hedgehog")
    found = record("hedgehog")
    history = pd.read_csv("results/distill/hedgehog/0/history.csv")
    assert [p["phase"] for p in found["phases"]] == [phase]
    assert history.loss.iloc[-1] < 0.9 * history.loss.iloc[0]
    assert found["kl_end"] < found["kl_start"]
    assert found["phases"][0]["flops"] > 0


def test_phases_follow_each_other_and_their_steps_run_on(phased: Workspace) -> None:
    phased.set(transfer={"steps": 4, "warmup": 1}, align={"steps": 4, "warmup": 1}, lora={"steps": 4, "warmup": 1})
    phased.set(distill={"steps": 6})
    phased.run("distill hedgehog")
    history = pd.read_csv("results/distill/hedgehog/0/history.csv")
    assert history.phase.drop_duplicates().tolist() == ["transfer", "align", "distill", "lora"]
    assert history.groupby("phase", sort=False).step.max().tolist() == [4, 8, 14, 18]
    assert history[history.phase == "transfer"].kl.isna().all()
    assert sum(p["steps"] for p in record("hedgehog")["phases"]) == record("hedgehog")["budget"]["steps"] == 18


def test_a_random_start_has_none_of_the_teachers_attention(phased: Workspace) -> None:
    phased.set(hedgehog={"weights": "random"})
    phased.run("distill hedgehog")
    drawn = record("hedgehog")["kl_start"]
    assert record("hedgehog")["start"] == "random"
    phased.set(hedgehog={"weights": "teacher"})
    phased.run("distill hedgehog")
    assert drawn > 2 * record("hedgehog")["kl_start"]


@pytest.mark.slow
def test_patience_stops_and_keeps_the_best(phased: Workspace) -> None:
    phased.set(distill={"steps": 200, "lr": 3.0, "warmup": 0, "valid_every": 2, "log_every": 2, "patience": 3})
    phased.run("distill hedgehog")
    found, history = record("hedgehog"), pd.read_csv("results/distill/hedgehog/0/history.csv")
    assert found["budget"]["steps"] < 200
    assert found["kl_end"] == pytest.approx(history.valid_kl.min(), abs=1e-5)


def test_seeds_of_data_and_of_features_are_apart(phased: Workspace) -> None:
    phased.set(seeds=[3, 4], seed={"data": 7})
    runs = params.load_settings().variant("hedgehog").runs()
    assert [(r.run, r.data, r.features) for r in runs] == [(3, 7, 3), (4, 7, 4)]
    phased.set(seed={"data": None, "features": 1}, hedgehog={"seeds": [5]})
    assert [tuple(r) for r in params.load_settings().variant("hedgehog").runs()] == [(5, 5, 1)]


def test_every_phase_is_listed_under_its_own_name_in_the_order_of_training() -> None:
    assert list(PHASES) == ["transfer", "align", "distill", "lora"]
    assert [cls.name for cls in PHASES.values()] == list(PHASES)
