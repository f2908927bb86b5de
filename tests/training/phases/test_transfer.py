"""Transfer: every layer learns from its own output on the teacher's own inputs, and weights are those of the output."""

import pytest
import torch
from conftest import Workspace

from attnopt.core.errors import UserError
from attnopt.mechanisms.base import Inputs
from attnopt.student.attach import mechanisms_of
from attnopt.student.calls import attention_weights
from attnopt.student.layers import attention_layers
from training.world import make_objective


@pytest.mark.parametrize("name", ["transfer", "align"])
def test_an_unchanged_softmax_student_has_nothing_to_match(phased: Workspace, name: str) -> None:
    same, ids = make_objective(name, "softmax")
    changed, _ = make_objective(name, "none")
    assert float(same(ids, None)[0]) < 1e-9
    assert float(changed(ids, None)[0]) > 1e-3


def test_transfer_feeds_every_layer_the_teachers_own_inputs(phased: Workspace) -> None:
    """Against the obvious way: layer by layer, from the teacher's hidden states."""
    transfer, ids = make_objective("transfer")
    teacher = transfer.dataset.teacher
    hidden = teacher.base_model(input_ids=ids, output_hidden_states=True).hidden_states
    errors = []
    for layer, block, x in zip(attention_layers(transfer.student), teacher.transformer.h, hidden[:-1], strict=True):
        normed = block.ln_1(x)
        ours, theirs = layer(normed, attention_mask=None)[0], block.attn(normed, attention_mask=None)[0]
        errors += [(a - b).square().sum() / b.square().sum() for a, b in zip(ours, theirs, strict=True)]
    torch.testing.assert_close(transfer(ids, None)[0], torch.stack(errors).mean(), rtol=1e-4, atol=1e-6)


def test_each_layer_learns_from_its_own_output_alone(phased: Workspace) -> None:
    transfer, ids = make_objective("transfer")
    transfer.begin()
    first, second = mechanisms_of(transfer.student)[:2]
    with torch.no_grad():
        second.query_weight.mul_(3.0)
    transfer(ids, None)[0].backward()
    shifted = first.query_weight.grad.clone()
    other, _ = make_objective("transfer")
    other.begin()
    other(ids, None)[0].backward()
    torch.testing.assert_close(shifted, mechanisms_of(other.student)[0].query_weight.grad)


def test_softmax_weights_have_no_divergence_from_themselves(phased: Workspace) -> None:
    phased.set(transfer={"loss": "weights"})
    same, ids = make_objective("transfer", "softmax")
    assert abs(float(same(ids, None)[0])) < 1e-6


def test_weights_are_refused_where_there_are_none(phased: Workspace) -> None:
    phased.set(transfer={"loss": "weights", "steps": 3})
    with pytest.raises(UserError, match=r"none.transfer.loss: 'weights' needs attention weights .* allowed: outputs"):
        phased.run("distill none")


def test_attention_weights_are_those_that_give_the_output(phased: Workspace) -> None:
    mechanism = mechanisms_of(make_objective("transfer")[0].student)[0]
    g = mechanism.geometry
    q, k, v = (torch.randn(2, g.heads, 9, g.head_dim) for _ in range(3))
    expected = mechanism(Inputs(q, k, v), keeps_state=False)[0]
    with attention_weights(mechanism) as weights:
        out, _ = mechanism(Inputs(q, k, v), keeps_state=False)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights[0] @ v, expected, rtol=1e-4, atol=1e-5)
    assert weights[0].triu(1).abs().max() == 0
    assert torch.equal(mechanism(Inputs(q, k, v), keeps_state=False)[0], expected)
