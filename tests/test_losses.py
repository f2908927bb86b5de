"""The chunked loss against the plain one, and the divergences against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from attnopt.losses import LossSpec, distillation_loss, distillation_loss_reference, divergence
from attnopt.teacher import Head


def world(tokens: int = 37, width: int = 12, vocab: int = 50) -> tuple:
    g = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    hidden, weight, bias = make(tokens, width), make(vocab, width), make(vocab)
    teacher = Head(make(vocab, width), None, 0.7)
    targets = torch.randint(vocab, (tokens,), generator=g)
    return hidden, weight, bias, make(tokens, width), teacher, targets


@pytest.mark.parametrize("kl", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("ce_weight", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("chunk", [5, 64])
def test_chunked_loss_equals_plain_loss(kl: str, ce_weight: float, temperature: float, chunk: int) -> None:
    hidden, weight, bias, theirs, teacher, targets = world()
    spec = LossSpec(kl, ce_weight, temperature, chunk)  # type: ignore[arg-type]
    results = []
    for loss_of in (distillation_loss, distillation_loss_reference):
        leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
        loss, value = loss_of(leaves[0], Head(leaves[1], leaves[2], 1.3), theirs, teacher, targets, spec)
        (3 * loss).backward()
        results.append([loss.detach(), value.detach(), *(leaf.grad for leaf in leaves)])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-7)


def test_only_what_needs_a_gradient_gets_one() -> None:
    hidden, weight, bias, theirs, teacher, targets = world()
    hidden.requires_grad_()
    loss, _ = distillation_loss(hidden, Head(weight, bias, 1.0), theirs, teacher, targets, LossSpec())
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_forward_kl_is_torchs_kl_with_the_teacher_as_target() -> None:
    log_p, log_q = (torch.randn(9, 20).log_softmax(-1) for _ in range(2))
    value, _ = divergence(log_p, log_q, "forward")
    torch.testing.assert_close(value.mean(), F.kl_div(log_q, log_p, log_target=True, reduction="batchmean"))
    swapped, _ = divergence(log_q, log_p, "reverse")
    torch.testing.assert_close(value, swapped)


def test_the_mean_is_over_tokens_not_sequences() -> None:
    hidden, weight, bias, theirs, teacher, targets = world(tokens=8)
    head = Head(weight, bias, 1.0)
    once = distillation_loss(hidden, head, theirs, teacher, targets, LossSpec())[0]
    twice = distillation_loss(*(t if isinstance(t, Head) else t.repeat(2, *[1] * (t.ndim - 1)) for t in (hidden, head, theirs, teacher, targets)), LossSpec())[0]  # fmt: skip
    torch.testing.assert_close(once, twice)


def test_equal_distributions_have_no_divergence() -> None:
    log_p = torch.randn(9, 20).log_softmax(-1)
    for kind in ("forward", "reverse", "jsd"):
        value, grad = divergence(log_p, log_p, kind)
        assert value.abs().max() < 1e-6
        assert grad.abs().max() < 1e-6
