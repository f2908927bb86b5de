"""Grids of levels: how far off a number can be, what stays exact, and how levels are packed."""

import pytest
import torch

from attnopt.ops.integers import LARGEST, from_levels, grid_of, hadamard, pack, to_levels, unpack


def rounded(x: torch.Tensor, dim: int, bits: int) -> torch.Tensor:
    grid = grid_of(x, dim, bits)
    return from_levels(to_levels(x, grid, bits), grid, x.dtype)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1, 100), (1e-3, 0), (1e-5, 1), (5000, -3), (0.1, -777)])
def test_no_number_is_further_off_than_half_a_step(bits: int, scale: float, offset: float):
    torch.manual_seed(0)
    x = torch.randn(200, 50, dtype=torch.float64) * scale + offset
    grid = grid_of(x, 1, bits)
    off = (rounded(x, 1, bits) - x).abs()
    assert torch.all(off <= grid.step.double() / 2 * (1 + 1e-9))
    ideal = (x.amax(1) - x.amin(1)) / (2**bits - 1)
    assert torch.all(grid.step[:, 0].double() <= ideal * 1.002 + x.abs().amax(1) * 2**-9 / (2**bits - 1) + 1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 300.0])
def test_what_float16_holds_and_all_numbers_share_is_exact(value: float):
    x = torch.full((3, 8), value)
    assert torch.equal(rounded(x, 1, 4), x)


def test_both_ends_of_a_group_are_among_its_levels():
    x = torch.tensor([[0.0, 3.0, 7.5, 15.0]])
    assert to_levels(x, grid_of(x, 1, 4), 4).tolist() == [[0, 3, 8, 15]]
    assert rounded(x, 1, 4).tolist() == [[0, 3, 8, 15]]


def test_what_float16_cannot_hold_is_cut_off_and_finite():
    x = torch.tensor([[-1e30, 1.0, 2e9]])
    assert rounded(x, 1, 8).abs().max() <= 1.01 * LARGEST
    assert rounded(x, 1, 8).isfinite().all()


@pytest.mark.parametrize("bits", [4, 8])
def test_levels_are_packed_without_loss(bits: int):
    level = torch.randint(0, 2**bits, (2, 3, 5, 6), dtype=torch.uint8)
    packed = pack(level, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape[-1] == 6 * bits // 8
    assert torch.equal(unpack(packed, bits), level)


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_the_hadamard_matrix_is_its_own_inverse_and_even(size: int):
    matrix = hadamard(size, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(matrix @ matrix, torch.eye(size, dtype=torch.float64))
    assert torch.all(matrix.abs() == size**-0.5)
