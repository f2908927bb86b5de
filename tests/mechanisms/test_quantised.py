"""What is rounded, when, and how much memory that takes."""

import pytest
import torch

from attnopt.mechanisms import Geometry, Inputs
from attnopt.mechanisms.base import measured_bytes
from attnopt.mechanisms.quantised import Quantised
from attnopt.mechanisms.shared.sizing import softmax_bytes
from attnopt.mechanisms.softmax import Softmax

GEOMETRY = Geometry(heads=4, kv_heads=2, head_dim=64, hidden=256, scaling=0.125)


def inputs(tokens: int, geometry: Geometry = GEOMETRY) -> Inputs:
    torch.manual_seed(0)
    heads = (geometry.heads, geometry.kv_heads, geometry.kv_heads)
    return Inputs(*(torch.randn(1, h, tokens, geometry.head_dim) for h in heads))


def quantised(geometry: Geometry = GEOMETRY, **options) -> Quantised:
    return Quantised(geometry, Quantised.Options(**options))


@pytest.mark.parametrize(("bits", "numbers"), [(8, (8 + 0.5 + 8 + 1) / 2), (4, (4 + 0.5 + 4 + 1) / 2)])
def test_the_memory_is_what_the_bits_say(bits: int, numbers: float):
    _, state = quantised(bits=bits)(inputs(1024))
    assert state.k.tensor.dtype == state.v.tensor.dtype == torch.uint8
    assert measured_bytes(state) == softmax_bytes(GEOMETRY, 1024, torch.float32) * numbers / 32


@pytest.mark.parametrize(("bits", "least", "most"), [(8, 1e-5, 0.01), (4, 1e-3, 0.3)])
@pytest.mark.parametrize("rotate", [False, True])
def test_more_bits_are_nearer_to_softmax(bits: int, least: float, most: float, rotate: bool):
    x = inputs(300)
    exact, _ = Softmax(GEOMETRY, Softmax.Options())(x)
    out, _ = quantised(bits=bits, rotate=rotate)(x)
    off = (out - exact).norm(dim=(1, 3)) / exact.norm(dim=(1, 3))
    assert off[0, :64].max() < 1e-5, "the first block is complete only after its last query"
    assert least < off[0, 64:].max() < most


def test_only_the_tokens_of_the_querys_own_block_are_read_as_they_came():
    x = inputs(20)
    x.v.requires_grad_()
    out, _ = quantised(block=8)(x)
    out[:, :, 18].sum().backward()
    assert x.v.grad[0, 0].any(-1).nonzero()[:, 0].tolist() == [16, 17, 18]


def test_a_block_is_rounded_by_its_own_numbers_alone():
    x, more = inputs(16), inputs(16)
    more.k[:, :, 8:] *= 100
    first, second = (quantised(block=8)(each)[1] for each in (x, more))
    assert torch.equal(first.k.tensor[:, :, :8], second.k.tensor[:, :, :8])
    assert torch.equal(first.k_grid.tensor[:, :, :1], second.k_grid.tensor[:, :, :1])


def test_a_channel_far_from_zero_loses_nothing_by_it():
    """Keys per channel: an offset that all tokens share costs no precision, as it would with a grid around zero."""
    x = inputs(128)
    moved = Inputs(x.q, x.k + 50 * (torch.arange(64) == 3), x.v)
    softmax = Softmax(GEOMETRY, Softmax.Options())
    off = [(quantised(bits=4)(each)[0] - softmax(each)[0]).norm() for each in (x, moved)]
    assert off[1] < 1.5 * off[0]


@pytest.mark.parametrize(
    ("options", "head_dim", "names"),
    [
        ({"bits": 2}, 64, "bits"),
        ({"block": 0}, 64, "block"),
        ({"group": 0}, 64, "group"),
        ({"group": 32}, 80, "group: 32 does not divide the heads' width, 80"),
        ({"rotate": True, "group": 16}, 80, "rotate: true is for heads whose width is a power of two, and it is 80"),
        ({"bits": 4}, 9, "bits: 4 are packed two to a byte, and the heads' width, 9, is odd"),
        ({"residual": 3}, 64, "residual"),
    ],
)
def test_bad_options_are_refused(options: dict, head_dim: int, names: str):
    geometry = Geometry(heads=2, kv_heads=1, head_dim=head_dim, hidden=8, scaling=0.5)
    with pytest.raises(ValueError, match=names):
        quantised(geometry, **options)


def test_a_narrow_head_has_one_group():
    geometry = Geometry(heads=2, kv_heads=1, head_dim=8, hidden=8, scaling=0.5)
    _, state = quantised(geometry)(inputs(64, geometry))
    assert state.v_grid.tensor.shape == (1, 1, 64, 2)
