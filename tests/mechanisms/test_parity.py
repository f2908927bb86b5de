"""Against implementations that nobody here wrote, in float64 where they allow it; where one is wrong, it shows."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama

from attnopt.conformance.case import randomise
from attnopt.mechanisms import Geometry, Inputs, Mechanism, load_mechanism

LENGTH = 63


def build(kind: str, kv_heads: int = 4, **options) -> Mechanism:
    geometry = Geometry(heads=4, kv_heads=kv_heads, head_dim=16, hidden=32, scaling=16**-0.5)
    torch.manual_seed(0)
    return load_mechanism(kind)(geometry, load_mechanism(kind).Options(**options)).double()


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


# window and masks


def distances() -> Tensor:
    """(T, T) t - s of query t and key s."""
    return torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("window", "sinks"), [(16, 0), (16, 4), (1, 3)])
def test_window_is_sdpa_with_a_band_mask(window: int, sinks: int, kv_heads: int):
    x, distance = inputs(kv_heads), distances()
    visible = (distance >= 0) & ((distance < window) | (torch.arange(LENGTH) < sinks))
    theirs = F.scaled_dot_product_attention(x.q, x.k, x.v, visible, enable_gqa=True)
    assert_same(build("window", kv_heads, window=window, sinks=sinks)(x)[0], theirs, x)


def test_window_is_local_attention():
    local_attention = pytest.importorskip("local_attention", reason="local-attention is not installed")
    x = inputs()
    peer = local_attention.LocalAttention(
        window_size=15,  # it counts the keys before the token
        causal=True,
        exact_windowsize=True,
        autopad=True,
        use_rotary_pos_emb=False,
    )
    assert_same(build("window", window=16, sinks=0)(x)[0], peer(x.q, x.k, x.v), x)


def test_masks_is_sdpa_with_the_logarithm_of_the_mixed_masks():
    names = ("last:1", "last:3", "window:9", "first:2", "stride:5")
    x, masks, distance = inputs(), build("masks", candidates=names, start="random"), distances()
    first = torch.arange(LENGTH).expand(LENGTH, -1) < 2
    candidates = torch.stack([distance == 0, distance == 2, distance < 9, first, distance % 5 == 0]).double()
    mixed = torch.einsum("c,cts->ts", masks.alpha[0].sigmoid(), candidates).tril()
    theirs = F.scaled_dot_product_attention(x.q, x.k, x.v, mixed.detach().log())
    assert_same(masks(x)[0], theirs, x)


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


# based and hedgehog


def test_based_without_a_window_is_flash_linear_attentions_naive_one():
    x, based = inputs(), build("based", window=0, feature_dim=16)
    with torch.no_grad():
        based.key_weight.copy_(torch.eye(16))
        based.query_weight.copy_(torch.eye(16) * 16**-0.5)
    peer = naive("ops/based/naive.py").naive_parallel_based
    mass = peer(x.q, x.k, torch.ones_like(x.v), use_norm=False)  # its own normaliser adds 1e-6
    assert_same(based(x)[0], peer(x.q, x.k, x.v, use_norm=False) / mass, x)


def test_hedgehog_without_a_window_is_flash_linear_attention_on_its_features():
    x, hedgehog = inputs(length=64), build("hedgehog", window=0)
    q, k, v = (t.transpose(1, 2) for t in (x.q, x.k, x.v))
    q, k = (torch.cat([t, -t], dim=-1).softmax(-1) for t in (q, k))
    peer = naive("ops/linear_attn/naive.py").naive_chunk_linear_attn
    assert_same(hedgehog(x)[0], peer(q, k, v, scale=1.0, normalize=True).transpose(1, 2), x, rtol=1e-7)


# dsa


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("keep", [7, 40, 100])
def test_dsa_is_flash_linear_attentions_naive_one_on_its_indexers_projections(keep: int, kv_heads: int):
    """With 16 of its queries hardly a token is liked by none, where all are equal and the two choose otherwise."""
    x, dsa = inputs(kv_heads), build("dsa", kv_heads, keep=keep, sinks=0, window=0, index_heads=16, index_dim=8)
    q_index, w = (x.hidden @ dsa.query).view(2, LENGTH, 16, 8), x.hidden @ dsa.weight + dsa.bias
    q, k, v = (t.transpose(1, 2) for t in (x.q, x.k, x.v))
    peer = naive("ops/dsa/naive.py").naive_dsa
    theirs, indices = peer(q, k, v, q_index, x.hidden @ dsa.key, w, topk=keep, return_indices=True)
    read = dsa.chosen(x.hidden, x.hidden @ dsa.key)
    chosen = torch.zeros(2, LENGTH, LENGTH + 1, dtype=torch.bool)
    chosen.scatter_(2, indices.masked_fill(indices < 0, LENGTH), True)
    assert torch.equal(read, chosen[..., :LENGTH])
    assert_same(dsa(x)[0], theirs.transpose(1, 2), x, rtol=1e-5)  # it computes in float32


# nsa


class Unrotated(nn.Module):
    """In place of the package's rotary embedding: our inputs carry their positions."""

    def rotate_queries_with_cached_keys(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q, k


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_nsas_package_backend_is_the_package_with_its_own_projections(kv_heads: int):
    package = pytest.importorskip("native_sparse_attention_pytorch", reason="the package is not installed")
    nsa = randomise(build("nsa", kv_heads, backend="package", block=8, selected=2, window=16))
    taken = dict(nsa.backend.attention.named_parameters())
    whole = package.SparseAttention(
        dim=32,
        dim_head=16,
        heads=4,
        kv_heads=kv_heads,
        sliding_window_size=15,
        compress_block_size=8,
        compress_block_sliding_stride=8,
        selection_block_size=8,
        num_selected_blocks=2,
        causal=True,
        norm=False,
        compress_mlp=nsa.backend.attention.k_compress,
    ).double()
    whole.rotary_emb = Unrotated()
    shared = {name.replace("combine.0.1.", "combine.0."): p for name, p in taken.items()}
    own = {name: p for name, p in whole.named_parameters() if name not in shared}
    assert set(own) == {"to_qkv.weight", "combine_heads.weight"}
    whole.load_state_dict({**shared, **own})
    hidden = inputs().hidden
    q, k, v = (whole.split_heads(t) for t in whole.to_qkv(hidden).split(whole.qkv_split, dim=-1))
    ours = whole.combine_heads(nsa(Inputs(q, k, v, hidden))[0].transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours, whole(hidden), rtol=1e-9, atol=1e-9)
