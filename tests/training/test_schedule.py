"""The blocks of every step, and the rate of every step."""

import numpy as np
import pytest

from attnopt.training import schedule


def test_every_pass_sees_every_block_once() -> None:
    rows = np.concatenate([schedule.batch_rows(10, 4, step, seed=3) for step in range(5)])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    assert schedule.batch_rows(10, 4, 1, seed=4).tolist() != rows[4:8].tolist()


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    rates = [schedule.factor(step, 100, 10) for step in range(101)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == rates[10] == 1
    assert rates[100] == pytest.approx(0, abs=1e-9)
