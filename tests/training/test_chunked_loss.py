"""The chunked loss against the plain one."""

import pytest
import torch
import torch.nn.functional as F

from attnopt.core.errors import UserError
from attnopt.targets.targets import DenseTargets, HiddenTargets, SparseTargets, Targets
from attnopt.teacher.head import Head
from attnopt.training import chunked_loss as losses
from attnopt.training.chunked_loss import LossSpec, distillation_loss, distillation_loss_reference

TOKENS, WIDTH, VOCAB = 37, 12, 50


def world(tokens: int = TOKENS, dtype: torch.dtype = torch.float64) -> tuple:
    """A student's hidden states, its head's weight and bias, the teacher's targets and the labels."""
    g = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    hidden, weight, bias = make(tokens, WIDTH), make(VOCAB, WIDTH), make(VOCAB)
    targets = HiddenTargets(make(tokens, WIDTH), Head(make(VOCAB, WIDTH), None, 0.7))
    return hidden, weight, bias, targets, torch.randint(VOCAB, (tokens,), generator=g)


def top(targets: HiddenTargets, k: int, tail: bool) -> SparseTargets:
    p, ids = targets[:].logits.softmax(-1).topk(k)
    return SparseTargets(ids, p, (1 - p.sum(-1)).clamp(min=0) if tail else None)


def counted(targets: HiddenTargets, draws: int, seed: int = 0) -> SparseTargets:
    """Counts over draws: tokens drawn once or more, then padding."""
    g = torch.Generator().manual_seed(seed)
    p = targets[:].logits.softmax(-1)
    drawn = p.multinomial(draws, replacement=True, generator=g)
    counts = torch.zeros_like(p).scatter_add_(-1, drawn, torch.ones_like(drawn, dtype=p.dtype))
    p, ids = (counts / draws).topk(draws)
    return SparseTargets(ids.masked_fill(p == 0, 0), p, None, p.new_full((len(p),), 1.5))


FORMS = {
    "hidden": lambda t: t,
    "dense": lambda t: DenseTargets(t[:].logits.log_softmax(-1)),
    "top-k with a tail": lambda t: top(t, 5, tail=True),
    "top-k alone": lambda t: top(t, 5, tail=False),
    "counts": lambda t: counted(t, 9),
}


def both(targets: Targets, spec: LossSpec, dtype: torch.dtype = torch.float64) -> list[list[torch.Tensor]]:
    """Value, divergence and gradients of the chunked and of the plain loss."""
    hidden, weight, bias, _, labels = world(dtype=dtype)
    results = []
    for loss_of in (distillation_loss, distillation_loss_reference):
        leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
        loss, value = loss_of(leaves[0], Head(leaves[1], leaves[2], 1.3), targets, labels, spec)
        (3 * loss).backward()
        results.append([loss.detach(), value.detach(), *(leaf.grad for leaf in leaves)])
    return results


@pytest.fixture(params=[1, 4], ids=["a row at a time", "four rows at a time"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CPU_CACHE_BYTES", request.param * 4 * VOCAB)


@pytest.mark.parametrize("kl", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("ce_weight", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("chunk", [5, 64])
@pytest.mark.parametrize("form", ["hidden", "dense"])
def test_chunked_loss_equals_plain_loss(
    form: str, kl: str, ce_weight: float, temperature: float, chunk: int, cut: None
) -> None:
    fast, slow = both(FORMS[form](world()[3]), LossSpec(kl, ce_weight, temperature, chunk))  # type: ignore[arg-type]
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", ["top-k with a tail", "top-k alone", "counts"])
@pytest.mark.parametrize("ce_weight", [0.0, 0.3])
@pytest.mark.parametrize("chunk", [5, 64])
def test_chunked_loss_equals_plain_loss_of_sparse_targets(form: str, ce_weight: float, chunk: int, cut: None) -> None:
    fast, slow = both(FORMS[form](world()[3]), LossSpec(ce_weight=ce_weight, chunk=chunk))
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_without_a_divergence_the_loss_is_cross_entropy_and_the_forward_one_is_still_told(form: str) -> None:
    fast, slow = both(FORMS[form](world()[3]), LossSpec("none", ce_weight=0.5))
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    hidden, weight, bias, _, labels = world()
    torch.testing.assert_close(fast[0], 0.5 * F.cross_entropy(Head(weight, bias, 1.3)(hidden), labels))
    assert fast[1] > 0


@pytest.mark.parametrize("form", FORMS)
def test_in_float32_they_are_equal_to_its_accuracy(form: str) -> None:
    fast, slow = both(FORMS[form](world(dtype=torch.float32)[3]), LossSpec(chunk=5), torch.float32)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)


def test_under_autocast_the_products_are_in_bfloat16_and_the_loss_in_float32() -> None:
    hidden, weight, bias, targets, labels = world(dtype=torch.float32)
    exact = distillation_loss(hidden, Head(weight, bias, 1.0), targets, labels, LossSpec())[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = distillation_loss(hidden, Head(weight, bias, 1.0), targets, labels, LossSpec())[0]
    assert rounded.dtype == torch.float32
    assert 0 < abs(rounded - exact) < 0.02 * exact


@pytest.mark.parametrize("form", FORMS)
def test_only_what_needs_a_gradient_gets_one(form: str) -> None:
    hidden, weight, bias, targets, labels = world()
    hidden.requires_grad_()
    loss, _ = distillation_loss(hidden, Head(weight, bias, 1.0), FORMS[form](targets), labels, LossSpec())
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_the_mean_is_over_tokens_not_sequences() -> None:
    hidden, weight, bias, targets, labels = world(tokens=8)
    head = Head(weight, bias, 1.0)
    once = distillation_loss(hidden, head, targets, labels, LossSpec())[0]
    doubled = HiddenTargets(targets.hidden.repeat(2, 1), targets.head)
    twice = distillation_loss(hidden.repeat(2, 1), head, doubled, labels.repeat(2), LossSpec())[0]
    torch.testing.assert_close(once, twice)


def test_a_tail_of_one_token_and_top_k_of_all_are_exact() -> None:
    """Where the bucket holds one token, or none, nothing is lost."""
    targets = world()[3]
    for k in (VOCAB - 1, VOCAB):
        torch.testing.assert_close(gradient(top(targets, k, tail=True)), gradient(targets), rtol=1e-6, atol=1e-9)


def gradient(targets: Targets) -> torch.Tensor:
    hidden, weight, bias, _, labels = world()
    hidden.requires_grad_()
    distillation_loss(hidden, Head(weight, bias, 1.0), targets, labels, LossSpec())[0].backward()
    assert hidden.grad is not None
    return hidden.grad.flatten()


def test_counts_are_unbiased_and_top_k_alone_is_not() -> None:
    """Random-sampling distillation (arXiv:2503.16870): the mean over draws approaches the dense gradient."""
    targets = world()[3]
    dense = gradient(targets)
    mean = torch.stack([gradient(counted(targets, 9, seed)) for seed in range(400)]).mean(0)
    assert F.cosine_similarity(mean, dense, 0) > 0.99
    torch.testing.assert_close(mean.norm() / dense.norm(), torch.ones((), dtype=mean.dtype), rtol=0.05, atol=0)
    cut = top(targets, 3, tail=False)
    for alone in (cut, SparseTargets(cut.ids, cut.p / cut.p.sum(-1, keepdim=True))):
        assert F.cosine_similarity(gradient(alone), dense, 0) < 0.97


@pytest.mark.parametrize("form", ["top-k with a tail", "counts"])
def test_what_needs_the_whole_distribution_refuses_a_sparse_one(form: str) -> None:
    targets = FORMS[form](world()[3])
    for spec, key in (
        (LossSpec("reverse"), "distill.kl reverse"),
        (LossSpec("jsd"), "distill.kl jsd"),
        (LossSpec(temperature=2.0), "distill.temperature 2.0"),
    ):
        with pytest.raises(UserError, match=key):
            both(targets, spec)
