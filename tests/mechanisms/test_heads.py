"""Which heads are chosen, that each part has its own, what it holds, and how a budget is shared."""

import pytest
import torch

from attnopt.core.errors import UserError
from attnopt.core.section import validated
from attnopt.mechanisms import Geometry, Inputs
from attnopt.mechanisms.base import measured_bytes
from attnopt.mechanisms.heads import Heads
from attnopt.mechanisms.shared.sizing import softmax_bytes
from attnopt.mechanisms.softmax import Softmax
from attnopt.mechanisms.window import Window

GEOMETRY = Geometry(heads=8, kv_heads=4, head_dim=4, hidden=8, scaling=0.5)


def inputs(tokens: int, batch: int = 2) -> Inputs:
    torch.manual_seed(0)
    shapes = [(batch, h, tokens, 4) for h in (8, 4, 4)] + [(batch, tokens, 8)]
    return Inputs(*(torch.randn(shape) for shape in shapes))


def build(**options) -> Heads:
    return Heads(GEOMETRY, Heads.Options(**options))


def test_chosen_heads_are_softmax_and_the_others_a_window():
    x, heads = inputs(40), build(heads=(2, 1), rest={"kind": "window", "options": {"window": 5, "sinks": 1}})
    out, _ = heads(x)
    softmax = Softmax(GEOMETRY, Softmax.Options())(x)[0]
    window = Window(GEOMETRY, Window.Options(window=5, sinks=1))(x)[0]
    own = torch.tensor([False, False, True, True, True, True, False, False])
    torch.testing.assert_close(out[:, own], softmax[:, own])
    torch.testing.assert_close(out[:, ~own], window[:, ~own])


def test_the_fit_chooses_the_heads_that_look_far():
    """Query heads of key/value heads 1 and 3 look for a key of long ago, the others at the latest."""
    x, heads = inputs(60), build(share=0.5)
    x.k.mul_(0.01), x.q.mul_(0.01)
    x.k[:, :, 20:30, 0] = 9
    x.q[:, [2, 3, 6, 7], :, 0] = 3
    heads.fit(x)
    assert heads.chosen.tolist() == [False, True, False, True]


def test_near_is_what_the_rest_reads():
    """A key of 30 tokens ago is far for a window of 16 and near for one of 50."""
    x, heads = inputs(60), build(share=0.25, rest={"kind": "window", "options": {"window": 60, "sinks": 1}})
    heads.fit(x)
    assert heads._far_mass(x).tolist() == [0] * 4
    assert heads.chosen.tolist() == [True, False, False, False]


def test_a_list_is_kept_by_the_fit_and_by_saving():
    heads, other = build(heads=(3,)), build(share=0.25)
    heads.fit(inputs(60))
    assert heads.chosen.tolist() == [False, False, False, True]
    other.load_state_dict(heads.state_dict())
    torch.testing.assert_close(other(inputs(40))[0], heads(inputs(40))[0])


def test_the_state_is_that_of_each_kinds_own_heads():
    heads, x = build(share=0.25, rest="hedgehog"), inputs(50)
    _, state = heads(x)
    assert measured_bytes(state) == heads.state_bytes(2, 50, torch.float32)
    assert heads.growth == "linear"
    assert build(share=0.25, kept="window", rest="none").growth == "window"


def test_a_budget_gives_the_rest_what_the_chosen_leave():
    options, total = Heads.Options(share=0.25), softmax_bytes(GEOMETRY, 1024, torch.float32)
    sized = Heads.sized(GEOMETRY, options, total // 2, 1024, torch.float32)
    held = Heads(GEOMETRY, sized).state_bytes(1, 1024, torch.float32)
    assert 0.99 * total / 2 < held <= total / 2
    assert sized.kept == options.kept
    assert sized.rest.options.keys() == {"window"}
    with pytest.raises(ValueError, match="share: 1 of 4 heads with softmax hold 32768 bytes a layer at 1024 tokens, "):
        Heads.sized(GEOMETRY, options, total // 8, 1024, torch.float32)
    with pytest.raises(
        ValueError, match="window: window 1, sinks 4: 384 bytes a layer at 1024 tokens, and 0 are allowed"
    ):
        Heads.sized(GEOMETRY, options, total // 4, 1024, torch.float32)


def test_a_budget_of_two_that_are_bounded_is_shared_by_their_heads():
    options, total = (
        Heads.Options(share=0.5, kept="window", rest="hedgehog"),
        softmax_bytes(GEOMETRY, 1024, torch.float32),
    )
    sized = Heads.sized(GEOMETRY, options, total // 8, 1024, torch.float32)
    each = [part.state_bytes(1, 1024, torch.float32) for part in Heads(GEOMETRY, sized).parts]
    assert all(0.9 * total / 16 < held <= 1.1 * total / 16 for held in each)


def test_weights_are_those_of_each_head():
    heads, x = build(share=0.5, rest={"kind": "hedgehog", "options": {"window": 4}}), inputs(30)
    assert heads.dense_weights
    assert not build(rest="window").dense_weights
    weights = heads.weights(x)
    torch.testing.assert_close(weights @ x.v.repeat_interleave(2, 1), heads(x)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rest": "windwo"}, r"'v.rest' is 'windwo': unknown mechanism 'windwo' \(did you mean window\?\)"),
        (
            {"rest": {"kind": "window", "options": {"windw": 4}}},
            "v.rest: window: unknown option 'windw'; known: window, ",
        ),
        ({"rest": {"kind": "window", "options": {"window": 0}}}, "v.rest: window: window is 0: "),
        ({"rest": "mixture"}, "'mixture' is made of other mechanisms itself"),
        ({"kept": "performer_bidirectional"}, "'performer_bidirectional' sees later tokens"),
        ({"heads": [1, 1]}, "a head comes twice"),
        ({"heads": []}, "v.heads"),
        ({"share": 0}, "v.share"),
        ({"rest": 3}, "v.rest"),
    ],
)
def test_bad_options_are_refused_in_one_line(options: dict, message: str):
    with pytest.raises(UserError, match=message) as caught:
        validated(Heads.Options, options, "v")
    assert "\n" not in str(caught.value)


def test_a_head_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="heads: 4 does not exist, the layer has 0 to 3"):
        build(heads=(0, 4))


def test_options_come_back_from_a_card():
    options = Heads.Options(rest={"kind": "hedgehog", "options": {"window": 8}}, heads=[1])
    assert Heads.Options.model_validate_json(options.model_dump_json()) == options
