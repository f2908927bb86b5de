"""The log of a training: a checkpoint's copy of it is the same log, and its clocks go on."""

import time

import torch

from attnopt.mechanisms.base import Geometry
from attnopt.mechanisms.masks import Masks
from attnopt.records.distill import CoefficientRow, HistoryRow, PhaseRow
from attnopt.training.log import TrainingLog, coefficient_rows


def some_log() -> TrainingLog:
    numbers = dict.fromkeys(HistoryRow.model_fields, 1) | {"phase": "transfer", "kl": None, "loss": 1 / 3}
    ended = dict.fromkeys(PhaseRow.model_fields, 2) | {"phase": "transfer", "train": "attention", "kl_end": 0.7}
    log = TrainingLog(kl_unfitted=2.5, kl_start=1.5, flops={"transfer": 9})
    log.history.append(HistoryRow(**numbers))
    log.phases.append(PhaseRow(**ended))
    log.coefficients.append(CoefficientRow(step=1, layer=0, head=0, name="w", value=0.25))
    return log


def test_a_log_comes_back_from_its_state_as_it_was(tmp_path) -> None:
    log = some_log()
    torch.save(log.state(), tmp_path / "state.pt")
    back = TrainingLog.from_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert back == log
    assert isinstance(back.history[0], HistoryRow)
    assert isinstance(back.phases[0], PhaseRow)


def test_the_clocks_go_on_where_they_stood() -> None:
    state = TrainingLog(wall=100.0, cpu=50.0).state()
    time.sleep(0.01)
    wall, cpu = TrainingLog.from_state(state).pause()
    assert 100 <= state["wall"] <= wall < 101
    assert 50 <= state["cpu"] <= cpu < 51


def test_the_kl_at_the_end_is_the_last_phases_or_that_of_the_start() -> None:
    assert (some_log().kl_end, some_log().steps) == (0.7, 2)
    assert (TrainingLog(kl_start=1.5).kl_end, TrainingLog().steps) == (1.5, 0)


def test_coefficients_are_a_row_for_every_head_layer_and_name() -> None:
    geometry = Geometry(heads=4, kv_heads=4, head_dim=8, hidden=32, scaling=0.3, layer=3)
    mechanism = Masks(geometry, Masks.Options(candidates=["last:1", "window:4"], per_head=True))
    rows = list(coefficient_rows([mechanism], step=7))
    assert len(rows) == 8
    assert {(row.step, row.layer) for row in rows} == {(7, 3)}
    assert [row.head for row in rows if row.name == rows[0].name] == [0, 1, 2, 3]
    flat = [v for values in mechanism.coefficients().values() for v in values.flatten().tolist()]
    assert [row.value for row in rows] == [round(v, 6) for v in flat]
