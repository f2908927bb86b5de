"""Against forms that nobody here wrote: transformers' torch ones, and flash-linear-attention's naive ones.

All theirs compute in float32, with q scaled by F^-0.5, tokens before heads, and one key head for each query head.
"""

import importlib.util
import inspect

import pytest
import torch
import torch.nn.functional as F
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

from attnopt.ops.linear.decayed import decayed_attention
from attnopt.ops.linear.delta import delta_attention

TOKENS, FEATURES, DIM = 192, 16, 8
"""As many tokens as the peers' chunks divide."""


def naive(path: str):
    """A module of flash-linear-attention without its package, whose import needs Triton."""
    found = importlib.util.find_spec("fla")
    if found is None:
        pytest.skip("flash-linear-attention is not installed")
    (root,) = found.submodule_search_locations
    spec = importlib.util.spec_from_file_location("naive", f"{root}/{path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain(module, name: str):
    """transformers' own torch function: where flash-linear-attention is installed, its kernel stands in its place."""
    return inspect.unwrap(getattr(module, name))


def leaves(width: int, strength: bool):
    """q, k, v, log_decay, strength where wanted, and a state; float32, to be differentiated by."""
    g = torch.Generator().manual_seed(width)
    shapes = [(FEATURES,), (FEATURES,), (DIM,), (width,), *[(1,)] * strength]
    q, k, v, decay, *rest = (torch.randn(2, 3, TOKENS, *shape, generator=g) for shape in shapes)
    state = torch.randn(2, 3, FEATURES, DIM, generator=g)
    made = [
        F.normalize(q, dim=-1),
        F.normalize(k, dim=-1),
        v,
        -0.2 * decay.sigmoid(),
        *[b.sigmoid() for b in rest],
        state,
    ]
    return [t.requires_grad_() for t in made]


def theirs(function, q, k, v, decay, *rest, flat, **options):
    """(out, state) of a peer, in our layout; `flat`: whether it takes a decay without a last dimension."""
    *strength, state = rest
    decay = decay[..., 0] if flat else decay
    named = {"beta": strength[0][..., 0].transpose(1, 2)} if strength else {}
    q, k, v, decay = (t.transpose(1, 2) for t in (q, k, v, decay))
    named |= options.pop("named", lambda g: {"g": g})(decay)
    out, after = function(q, k, v, **named, initial_state=state.clone(), output_final_state=True, **options)
    return out.transpose(1, 2) * FEATURES**0.5, after


def assert_same(ours, peers, inputs) -> None:
    """Outputs, states, and the gradients of a weighted sum of both by all inputs."""
    g = torch.Generator().manual_seed(3)
    seeds = [torch.randn(t.shape, generator=g) for t in ours]
    for a, b in zip(ours, peers, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    grads = [torch.autograd.grad(pair, inputs, seeds, retain_graph=True) for pair in (ours, peers)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"])
def test_delta_with_a_decay_per_head_is_qwens(name: str):
    inputs = leaves(1, strength=True)
    assert_same(delta_attention(*inputs), theirs(plain(qwen, name), *inputs, flat=True), inputs)


@pytest.mark.parametrize("name", ["chunk_kimi_delta_attention", "recurrent_kimi_delta_attention"])
def test_delta_with_a_decay_per_feature_is_kimis(name: str):
    kimi = pytest.importorskip("transformers.models.kimi_linear.modeling_kimi_linear")
    inputs = leaves(FEATURES, strength=True)
    assert_same(delta_attention(*inputs), theirs(plain(kimi, name), *inputs, flat=False), inputs)


@pytest.mark.parametrize("name", ["naive_chunk_gated_delta_rule", "naive_recurrent_gated_delta_rule"])
def test_delta_with_a_decay_per_head_is_flash_linear_attentions(name: str):
    inputs, peer = leaves(1, strength=True), getattr(naive("ops/gated_delta_rule/naive.py"), name)
    assert_same(delta_attention(*inputs), theirs(peer, *inputs, flat=True), inputs)


def test_delta_with_a_decay_per_feature_is_flash_linear_attentions():
    inputs, peer = leaves(FEATURES, strength=True), naive("ops/kda/naive.py").naive_recurrent_kda
    assert_same(delta_attention(*inputs), theirs(peer, *inputs, flat=False), inputs)


@pytest.mark.parametrize("name", ["naive_chunk_simple_gla", "naive_recurrent_simple_gla"])
def test_decay_per_head_is_flash_linear_attentions_simple_gla(name: str):
    inputs, peer = leaves(1, strength=False), getattr(naive("ops/simple_gla/naive.py"), name)
    ours = decayed_attention(*inputs)
    out, after = theirs(peer, *inputs, flat=True)
    out = out.transpose(1, 2) if out.shape != ours[0].shape else out
    assert_same(ours, (out, after), inputs)


def test_decay_per_feature_is_flash_linear_attentions_gla():
    inputs, peer = leaves(FEATURES, strength=False), naive("ops/gla/naive.py").naive_recurrent_gla
    assert_same(
        decayed_attention(*inputs), theirs(peer, *inputs, flat=False, named=lambda gates: {"gk": gates}), inputs
    )


def test_a_constant_decay_is_flash_linear_attentions_retention():
    q, k, v, _, _ = leaves(1, strength=False)
    rates = (1 - 2.0 ** (-5 - torch.arange(3))).log()
    peer = naive("ops/retention/naive.py").naive_retention(q, k, v) * FEATURES**0.5
    ours, _ = decayed_attention(q, k, v, rates[None, :, None, None].expand(2, -1, TOKENS, 1))
    torch.testing.assert_close(ours, peer, rtol=1e-4, atol=1e-4)
    seed = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3))
    grads = [torch.autograd.grad(out, [q, k, v], seed) for out in (ours, peer)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)
