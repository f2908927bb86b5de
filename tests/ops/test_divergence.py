"""The divergences against torch's own, their gradients against autograd's."""

import pytest
import torch
import torch.nn.functional as F

from attnopt.ops.divergence import all_divergences, divergence, forward_kl

KINDS = {"forward": "kl_forward", "reverse": "kl_reverse", "jsd": "jsd"}


def two_distributions() -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(9, 20, generator=g, dtype=torch.float64).log_softmax(-1) for _ in range(2)]


def test_forward_kl_is_torchs_kl_with_the_teacher_as_target() -> None:
    log_p, log_q = (torch.randn(9, 20).log_softmax(-1) for _ in range(2))
    value, _ = divergence(log_p, log_q, "forward")
    torch.testing.assert_close(value.mean(), F.kl_div(log_q, log_p, log_target=True, reduction="batchmean"))
    swapped, _ = divergence(log_q, log_p, "reverse")
    torch.testing.assert_close(value, swapped)


def test_equal_distributions_have_no_divergence() -> None:
    log_p = torch.randn(9, 20).log_softmax(-1)
    for kind in ("forward", "reverse", "jsd"):
        value, grad = divergence(log_p, log_p, kind)
        assert value.abs().max() < 1e-6
        assert grad.abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_autograds_to_the_students_logits(kind: str) -> None:
    log_p, logits = two_distributions()
    logits.requires_grad_()
    value, grad = divergence(log_p, logits.log_softmax(-1), kind)
    p, log_q = log_p.exp(), logits.log_softmax(-1)
    q = log_q.exp()
    m = (p + q) / 2
    by_definition = {
        "forward": (p * (log_p - log_q)).sum(-1),
        "reverse": (q * (log_q - log_p)).sum(-1),
        "jsd": ((p * (log_p - m.log())).sum(-1) + (q * (log_q - m.log())).sum(-1)) / 2,
    }[kind]
    torch.testing.assert_close(value, by_definition)
    torch.testing.assert_close(grad, torch.autograd.grad(by_definition.sum(), logits)[0])


def test_all_three_at_once_are_the_three_one_by_one() -> None:
    log_p, log_q = two_distributions()
    found = all_divergences(log_p, log_q)
    for kind, name in KINDS.items():
        torch.testing.assert_close(found[name], divergence(log_p, log_q, kind)[0])
    assert torch.equal(forward_kl(log_p, log_q), divergence(log_p, log_q, "forward")[0])
