"""What one layer's attention does in each phase, without processes."""

import torch

from attnopt.bench.operation_runner import Handover, OperationRunner
from attnopt.bench.subjects import Operation
from attnopt.bench.work import Setting
from attnopt.mechanisms.base import Geometry

SETTING = Setting(batch=2, decode_tokens=3, dtype=torch.float32, device=torch.device("cpu"))
GEOMETRY = Geometry(heads=4, kv_heads=2, head_dim=8, hidden=32, scaling=8**-0.5)


def test_phases_of_an_operation():
    runner = Operation("softmax", GEOMETRY).load(SETTING)
    assert isinstance(runner, OperationRunner)
    k, _ = runner.work("prefill", 10).run(None)
    assert k.tensor.shape == (2, 2, 10, 8)
    work = runner.work("decode", 10)
    context = work.context()
    assert work.run(work.copy(context)).k.count == 13
    assert context.state.k.count == 10
    gradients = runner.work("train", 10).run(None)
    assert [g.shape[1] for g in gradients] == [4, 2, 2]


def test_an_operation_without_gradients_trains_without_error():
    assert Operation("none", GEOMETRY).load(SETTING).work("train", 10).run(None) is not None


def test_a_decoding_run_begins_with_room_for_its_tokens_and_memory_is_measured_without():
    """What a growth costs comes once in as many tokens as there are; the peak is that of a growth."""
    work = Operation("softmax", GEOMETRY).load(SETTING).work("decode", 10)
    context = work.context()
    given = work.copy(context)
    assert (context.state.k.capacity, given.state.k.capacity) == (10, 20)
    place = given.state.k.tensor.data_ptr()
    assert work.run(given).k.tensor.data_ptr() == place
    assert work.run(context).k.capacity == 20


def test_a_state_that_is_handed_over_is_held_by_the_run_alone():
    given = Handover((torch.ones(1),))
    copied = given.copy()
    assert copied.take()[0] is given.state[0]
    assert copied.state is None
