import pytest
import torch

from attnopt.mechanisms import Geometry, Inputs
from attnopt.mechanisms.masks import Masks

GEOMETRY = Geometry(heads=4, kv_heads=2, head_dim=8, hidden=32, scaling=0.3)


def build(*candidates: str, **options) -> Masks:
    return Masks(GEOMETRY, Masks.Options(candidates=candidates, **options)).double()


def inputs(tokens: int, batch: int = 1) -> Inputs:
    torch.manual_seed(tokens)
    q, k, v = (torch.randn(batch, heads, tokens, 8, dtype=torch.float64) for heads in (4, 2, 2))
    return Inputs(q, k, v)


@pytest.mark.parametrize(
    ("candidate", "rows"),
    [
        ("last:1", ["1000", "0100", "0010", "0001"]),
        ("window:2", ["1000", "1100", "0110", "0011"]),
        ("stride:2", ["1000", "0100", "1010", "0101"]),
        ("full", ["1000", "1100", "1110", "1111"]),
    ],
)
def test_candidates_select_what_they_say(candidate: str, rows: list[str]):
    expected = torch.tensor([[int(c) for c in row] for row in rows])
    assert torch.equal(build(candidate).mask(4)[0], expected * 0.5)


def test_candidates_without_the_token_itself():
    masks = build("last:1", "last:3", "first:2")
    with torch.no_grad():
        masks.alpha.copy_(torch.tensor([[-60.0, 0.0, 60.0]]))
    expected = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1.5, 1, 0, 0], [1, 1.5, 0, 0]])
    torch.testing.assert_close(masks.mask(4)[0], expected.double())


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (("last:2", "first:4"), "last:2, first:4 leaves a token without itself"),
        ((), "an empty list leaves a token without itself"),
        (("last:0",), "candidate 'last:0' is none of last:i, window:w, first:f, stride:n, full"),
        (("lats:1",), "candidate 'lats:1' is none of"),
        (("full:1",), "candidate 'full:1' is none of"),
        (("last:1", "last:1"), "has a candidate twice"),
    ],
)
def test_bad_candidates_are_refused(candidates: tuple[str, ...], message: str):
    with pytest.raises(ValueError, match=message):
        Masks.Options(candidates=candidates)


@pytest.mark.parametrize("options", [{"l1": -1}, {"start": "ones"}, {"candidate": ["full"]}])
def test_bad_options_are_refused(options: dict):
    with pytest.raises(ValueError, match=next(iter(options))):
        Masks.Options(**options)


@pytest.mark.parametrize(
    "candidates", [("last:1", "last:4"), ("window:3", "first:2"), ("stride:5", "last:2", "first:9"), ("full",)]
)
@pytest.mark.parametrize("length", [1, 2, 7, 30])
def test_density_counts_the_support(candidates: tuple[str, ...], length: int):
    masks = build(*candidates)
    assert masks.density(length) == pytest.approx((masks.mask(length) > 0).sum() / (length * (length + 1) / 2))


@pytest.mark.parametrize("per_head", [False, True])
def test_pruning_drops_light_candidates(per_head: bool):
    masks = build("last:1", "last:2", "window:9", "first:4", per_head=per_head)
    with torch.no_grad():
        masks.alpha.copy_(torch.tensor([1.0, -3.0, -4.0, 2.0]))
        if per_head:
            masks.alpha[3, 1] = 3
    pruned = masks.pruned(0.5)
    assert pruned.options.candidates == (("last:1", "last:2", "first:4") if per_head else ("last:1", "first:4"))
    assert pruned.density(50) < masks.density(50)
    x = inputs(20)
    with torch.no_grad():
        kept = [masks.options.candidates.index(c) for c in pruned.options.candidates]
        masks.alpha[:, [i for i in range(4) if i not in kept]] = -80
    torch.testing.assert_close(pruned(x)[0], masks(x)[0])


def test_pruning_leaves_each_row_the_token_itself():
    masks = build("last:1", "last:2", "window:2")
    with torch.no_grad():
        masks.alpha.copy_(torch.tensor([[-5.0, 3.0, -4.0]]))
    assert masks.pruned(0.5).options.candidates == ("last:2", "window:2")
    assert masks.pruned(1.0).options.candidates == ("window:2",)


def test_start_coefficients_and_penalty():
    masks = build("last:1", "last:2", per_head=True, l1=0.1)
    assert {n: c.tolist() for n, c in masks.coefficients().items()} == dict.fromkeys(("last:1", "last:2"), [[0.5]] * 4)
    assert masks.penalty().item() == pytest.approx(0.1)
    masks.penalty().backward()
    assert (masks.alpha.grad > 0).all()
    assert build("last:1").penalty() is None
    assert build("last:1", "last:2", start="random").alpha.std() > 0


def test_equal_coefficients_of_full_give_softmax():
    masks, x = build("full"), inputs(40)
    expected = torch.nn.functional.scaled_dot_product_attention(
        x.q, x.k, x.v, is_causal=True, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(masks(x)[0], expected)
    assert masks.growth == "linear"
    assert build("window:9").growth == "window"


def test_extreme_coefficients_have_finite_gradients():
    masks, x = build("last:1", "last:2", "stride:3", "first:2").float(), inputs(10)
    with torch.no_grad():
        masks.alpha.copy_(torch.tensor([[-300.0, 300.0, -200.0, 0.0]]))
    out, _ = masks(Inputs(x.q.float(), x.k.float(), x.v.float()))
    out.sum().backward()
    assert out.isfinite().all()
    assert masks.alpha.grad.isfinite().all()
