"""Against implementations that nobody here wrote, in float64 where they allow it; where one is wrong, it shows."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama

from attnopt.mechanisms import Geometry, Inputs, Mechanism, load

LENGTH = 63


def build(kind: str, kv_heads: int = 4, **options) -> Mechanism:
    geometry = Geometry(heads=4, kv_heads=kv_heads, head_dim=16, hidden=32, scaling=16**-0.5)
    torch.manual_seed(0)
    return load(kind)(geometry, load(kind).Options(**options)).double()


def inputs(kv_heads: int = 4, length: int = LENGTH) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, heads, length, 16) for heads in (4, kv_heads, kv_heads)] + [(2, length, 32)]
    return Inputs(*(torch.randn(shape, generator=generator).double().requires_grad_() for shape in shapes))


def assert_same(ours: Tensor, theirs: Tensor, x: Inputs, rtol: float = 1e-9) -> None:
    """Outputs and the gradients of q, k and v."""
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol)
    weights = torch.linspace(-1, 1, ours.numel()).double().view(ours.shape)
    got, expected = (torch.autograd.grad((out * weights).sum(), (x.q, x.k, x.v)) for out in (ours, theirs))
    torch.testing.assert_close(got, expected, rtol=rtol, atol=rtol)


def naive(path: str):
    """A module of flash-linear-attention without its package, whose import needs Triton."""
    (root,) = importlib.util.find_spec("fla").submodule_search_locations
    spec = importlib.util.spec_from_file_location("naive", f"{root}/{path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# softmax


def test_softmax_is_gpt2s_eager_attention():
    x = inputs()
    mask = torch.zeros(LENGTH, LENGTH).double().masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -torch.inf)
    theirs, _ = modeling_gpt2.eager_attention_forward(nn.Module(), x.q, x.k, x.v, mask, scaling=16**-0.5)
    assert_same(build("softmax")(x)[0], theirs.transpose(1, 2), x)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_softmax_is_hf_sdpa(kv_heads: int):
    x, layer = inputs(kv_heads), SimpleNamespace(num_key_value_groups=4 // kv_heads, is_causal=True, training=False)
    theirs, _ = AttentionInterface()["sdpa"](layer, x.q, x.k, x.v, None, scaling=16**-0.5)
    assert_same(build("softmax", kv_heads)(x)[0], theirs.transpose(1, 2), x)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_softmax_is_llamas_eager_attention(kv_heads: int):
    x, layer = inputs(kv_heads), SimpleNamespace(num_key_value_groups=4 // kv_heads, training=False)
    mask = torch.zeros(LENGTH, LENGTH).double().masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -torch.inf)
    theirs, _ = modeling_llama.eager_attention_forward(layer, x.q, x.k, x.v, mask, scaling=16**-0.5)
    assert_same(build("softmax", kv_heads)(x)[0], theirs.transpose(1, 2), x, rtol=1e-5)  # it computes in float32


# performer


@pytest.fixture
def peer(capsys):
    """performer-pytorch's causal attention in float64; it prints that its CUDA kernel is missing."""
    performer_pytorch = pytest.importorskip(
        "performer_pytorch.performer_pytorch", reason="performer-pytorch is missing"
    )
    torch.manual_seed(0)
    return performer_pytorch, performer_pytorch.FastAttention(16, nb_features=64, causal=True).double()


def performer_like(attention: nn.Module) -> Mechanism:
    performer = build("performer", features=64)
    with torch.no_grad():
        performer.projection.copy_(attention.projection_matrix.expand_as(performer.projection))
    return performer


def test_performer_is_performer_pytorch_without_its_epsilons(peer):
    package, attention = peer
    x, projection = inputs(), attention.projection_matrix
    q = package.softmax_kernel(x.q, projection_matrix=projection, is_query=True, eps=0)
    k = package.softmax_kernel(x.k, projection_matrix=projection, is_query=False, eps=0)
    theirs = package.causal_linear_attention_noncuda(q, k, x.v, eps=0)
    assert_same(performer_like(attention)(x)[0], theirs, x)


def test_performer_pytorch_lets_a_large_future_key_into_the_past_and_ours_does_not(peer):
    _, attention = peer
    x = inputs().map(lambda t, _: t.detach())
    k = x.k.clone()
    k[:, :, -1] *= 5
    changed = Inputs(x.q, k, x.v, x.hidden)
    ours = performer_like(attention)
    moved = [
        ((after - before)[:, :, :-1].norm() / before[:, :, :-1].norm()).item()
        for before, after in (
            (attention(x.q, x.k, x.v), attention(x.q, k, x.v)),
            (ours(x)[0], ours(changed)[0]),
        )
    ]
    assert moved[0] > 0.05
    assert moved[1] == 0
