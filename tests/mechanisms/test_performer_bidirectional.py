"""The control leaks where it says so, and is otherwise the Performer."""

import torch
from softmax_teacher import build, teacher

from attnopt.mechanisms import Inputs


def test_every_row_reads_the_last_token():
    control, x = build("performer_bidirectional"), teacher()
    v = x.v.clone()
    v[:, :, -1] += 1
    moved = control(Inputs(x.q, x.k, v))[0] - control(x)[0]
    assert (moved.abs().amax((0, 1, 3)) > 1e-6).all()


def test_its_last_row_is_the_performers():
    control, performer, x = build("performer_bidirectional"), build("performer"), teacher(kv_heads=4)
    torch.testing.assert_close(control(x)[0][:, :, -1], performer(x)[0][:, :, -1])


def test_single_steps_are_the_performers():
    control, performer, x = build("performer_bidirectional", 2), build("performer", 2), teacher(2)
    state, outs = None, []
    for t in range(x.q.shape[2]):
        out, state = control(x.slice(t, t + 1), state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 2), performer(x)[0])
