"""The package native-sparse-attention-pytorch behind `nsa.backend: package`."""

import pytest
import torch

from attnopt.mechanisms import Geometry, Inputs, load_mechanism
from attnopt.mechanisms.base import measured_bytes
from attnopt.mechanisms.softmax import Softmax

pytest.importorskip("native_sparse_attention_pytorch", reason="the package is not installed")
BLOCK = 4


def geometry(kv_heads=2):
    return Geometry(heads=4, kv_heads=kv_heads, head_dim=8, hidden=12, scaling=0.2)


def build(kv_heads=2, noise=0.5, dtype=torch.float64, **options):
    nsa = load_mechanism("nsa")
    mechanism = nsa(geometry(kv_heads), nsa.Options(backend="package", block=BLOCK, selected=2, window=5, **options))
    mechanism.to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in mechanism.parameters():
            p.add_(noise * torch.randn(p.shape, generator=generator).to(p))
    return mechanism


def inputs(length, kv_heads=2, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(length)
    shapes = [(batch, n, length, 8) for n in (4, kv_heads, kv_heads)] + [(batch, length, 12)]
    return Inputs(*(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 27])
def test_equals_its_definition_token_by_token_with_gradients(length, kv_heads):
    mechanism, x = build(kv_heads), inputs(length, kv_heads).map(lambda t, _: t.requires_grad_())
    fast, slow = mechanism(x)[0], mechanism.reference(x)
    torch.testing.assert_close(fast, slow)
    leaves, weights = [x.q, x.k, x.v, x.hidden, *mechanism.parameters()], torch.randn_like(fast)
    got, expected = (torch.autograd.grad((o * weights).sum(), leaves, materialize_grads=True) for o in (fast, slow))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("sizes", [[1] * 23, [3] + [1] * 20, [1, 2, 5, 15], [BLOCK, 19], [22, 1]])
def test_any_split_equals_the_whole(sizes):
    mechanism, x = build(), inputs(23)
    outs, state, start = [], None, 0
    for size in sizes:
        out, state = mechanism(x.slice(start, start + size), state)
        start += size
        outs.append(out)
        assert measured_bytes(state) == mechanism.state_bytes(2, start, torch.float64)
    torch.testing.assert_close(torch.cat(outs, dim=2), mechanism(x)[0])


def test_the_package_alone_disagrees_with_itself_after_a_prompt_shorter_than_a_block():
    package, x = build().backend, inputs(BLOCK)
    rows = package._rows(x)
    whole = package.attention(rows)
    _, cache = package.attention(rows[:, :2], return_cache=True)
    step = package.attention(rows[:, 2:3], cache=cache)
    assert (step - whole[:, :, 2:3]).abs().max() > 0.01


def test_no_output_knows_the_future():
    mechanism, x = build(), inputs(25)
    out = mechanism(x)[0]
    for t in range(24):
        after = torch.arange(25) > t
        changed = x.map(
            lambda a, dim, after=after: a + 10 * (after[:, None] if dim == 1 else after[None, None, :, None])
        )
        torch.testing.assert_close(mechanism(changed)[0][:, :, : t + 1], out[:, :, : t + 1])


def test_fit_brings_the_output_closer_to_softmax():
    x, mechanism = inputs(40), build(noise=0)
    softmax = Softmax(geometry(), Softmax.Options()).reference(x)
    before = (mechanism(x)[0] - softmax).norm()
    mechanism.fit(x)
    assert (mechanism(x)[0] - softmax).norm() < 0.8 * before


def test_parameters_may_be_of_less_precision_than_its_sums():
    x = inputs(23, dtype=torch.bfloat16)
    out, state = build(dtype=torch.bfloat16)(x)
    expected, _ = build(dtype=torch.float32)(x.map(lambda t, _: t.float()))
    assert out.dtype == torch.bfloat16
    assert state["cache"][0][0].dtype == torch.float32
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)


def test_what_it_cannot_do_is_refused():
    nsa, x = load_mechanism("nsa"), inputs(5)
    with pytest.raises(ValueError, match="hidden states"):
        build()(Inputs(x.q, x.k, x.v))
    for option, value in (("window", 1), ("selected", 0)):
        with pytest.raises(ValueError, match=rf"nsa\.{option}: {value}"):
            nsa(geometry(), nsa.Options(backend="package", **{option: value}))
