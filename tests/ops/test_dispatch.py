"""Fused kernels: when they are chosen, the check at their first use, and themselves against the eager path.

Without a GPU FlexAttention runs its own plain form, and flash-linear-attention's kernels in Triton's interpreter, in a
process of their own, as Triton reads its setting on import.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from attnopt.core.device import resolve_device
from attnopt.core.errors import RunError, UserError
from attnopt.mechanisms.base import Geometry, Inputs
from attnopt.mechanisms.window import Window
from attnopt.ops import dispatch as kernels
from attnopt.ops.dispatch import Kernel
from attnopt.ops.linear import chunked as linear
from attnopt.ops.linear import gla
from attnopt.ops.softmax import flex
from attnopt.ops.softmax.band import Prefix, band_attention
from attnopt.ops.softmax.spans import zero_empty
from attnopt.ops.tensors import MASKED
from attnopt.tools.doctor import diagnose

DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes to a kernel unless a test says so.

    FlexAttention's plain form has a backward pass, which it refuses on a CPU as no fused one is there.
    """
    monkeypatch.setattr(kernels, "ON", False)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(torch_flex, "_WARNINGS_SHOWN", {"flex_attention_performance", "deprecated_return_lse"})


def draw(device: str, heads: int, groups: int, tokens: int, past: int, dim: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens + past)
    shapes = (2, heads, tokens, dim), (2, groups, past + tokens, dim), (2, groups, past + tokens, dim)
    return [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]


def same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], leaves: list[Tensor], tolerance: float = 1e-4) -> None:
    """Results, and the gradients of a random function of them."""
    generator = torch.Generator().manual_seed(0)
    slopes = [torch.randn(t.shape, generator=generator).to(t) for t in expected]
    sides = [(*side, *torch.autograd.grad(side, leaves, slopes)) for side in (got, expected)]
    torch.testing.assert_close(*sides, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("groups", "biases"), [(4, None), (1, 1), (2, 4)])
@pytest.mark.parametrize(
    ("tokens", "past", "window"),
    [
        (2, 0, 1),
        (5, 40, 9),
        *(pytest.param(*of, marks=pytest.mark.slow) for of in [(150, 0, 16), (300, 0, 129), (140, 20, 500)]),
    ],
)
def test_flex_is_the_band(device: str, tokens: int, past: int, window: int, groups: int, biases: int | None):
    leaves, bias = draw(device, 4, groups, tokens, past), None
    if biases:
        bias = torch.randn(biases, window, device=device, requires_grad=True)
    everything = leaves if bias is None else [*leaves, bias]
    got, expected = (f(*leaves, window, 0.3, bias=bias) for f in (flex.fused, flex.eager))
    same(got, expected, everything, 1e-4 if device == "cpu" else 1e-2)


@pytest.mark.parametrize("device", DEVICES)
def test_flex_with_the_first_tokens(device: str):
    q, k, v = draw(device, 4, 2, 90, 7)
    prefix = Prefix(k[:, :, :3], v[:, :, :3], start=7, gap=9)
    got, expected = (f(q, k, v, 9, 0.3, prefix=prefix) for f in (flex.fused, flex.eager))
    same(got, expected, [q, k, v], 1e-4 if device == "cpu" else 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_flex_where_rows_have_no_key(device: str):
    q, k, v = draw(device, 2, 2, 140, 0)
    bias = torch.full((1, 6), MASKED, device=device).index_fill(1, torch.tensor([5], device=device), 0.0)
    for keys in (140, 131):
        for given in (bias, None):
            args = (q, k[:, :, :keys], v[:, :, :keys], 6, 0.3)
            got, expected = (f(*args, bias=given) for f in (flex.fused, flex.eager))
            assert torch.equal(got[1] < MASKED / 2, expected[1] < MASKED / 2)
            kept = [
                torch.cat([zero_empty(*part).flatten(), part[1].clamp(min=-99).flatten()]) for part in (got, expected)
            ]
            same((kept[0],), (kept[1],), [q, k, v], 1e-4 if device == "cpu" else 1e-2)


def test_flex_in_bfloat16_and_with_the_older_name_of_the_log_sum_exp(monkeypatch: pytest.MonkeyPatch):
    low = [t.detach().bfloat16() for t in draw("cpu", 2, 1, 150, 0)]
    monkeypatch.delattr(torch_flex, "AuxRequest")
    (out, lse), (expected, expected_lse) = flex.fused(*low, 16, 0.3), flex.eager(*low, 16, 0.3)
    assert out.dtype == lse.dtype == torch.float32
    assert (out - expected).norm() < 0.02 * expected.norm()
    assert (lse - expected_lse).norm() < 0.02 * expected_lse.norm()


def test_a_mask_made_without_autograd_serves_training_and_counts_only_blocks_with_keys():
    flex._band.cache_clear()
    q, k, v = draw("cpu", 2, 2, 400, 0)
    with torch.inference_mode():
        flex.fused(q.detach(), k.detach(), v.detach(), 16, 0.3)
    same(flex.fused(q, k, v, 16, 0.3), flex.eager(q, k, v, 16, 0.3), [q, k, v])
    mask = flex._band(0, 400, 400, 16, q.device).mask
    asked = torch_flex.create_block_mask(mask.mask_mod, None, None, 400, 400, device="cpu")
    assert torch.equal(mask.to_dense(), asked.to_dense())
    assert mask.kv_num_blocks.sum() == 7


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU takes a C++ compiler")
def test_flex_compiled_for_a_cpu(monkeypatch: pytest.MonkeyPatch):
    """Its output: there the compiler has no log-sum-exp and no backward pass."""
    compiled = torch.compile(torch_flex.flex_attention, fullgraph=True)

    def output(*args, return_aux, **kwargs):
        return compiled(*args, **kwargs), torch.zeros(())

    monkeypatch.setattr(flex, "_kernel", lambda _: output)
    q, k, v = (t.detach() for t in draw("cpu", 4, 2, 150, 20))
    bias = torch.randn(4, 9)
    got, expected = (f(q, k, v, 9, 0.3, bias=bias)[0] for f in (flex.fused, flex.eager))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("groups", [2, 4])
def test_flash_linear_attention_on_a_gpu(groups: int):
    pytest.importorskip("fla")
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, 300, 48), (2, groups, 300, 48), (2, groups, 300, 64), (2, groups, 48, 64), (2, groups, 48)
    leaves = [torch.rand(shape, generator=generator).cuda().requires_grad_() for shape in shapes]
    sides = []
    for f in (gla.fused, gla.eager):
        out, norm, state = f(*leaves[:3], linear.LinearState(*leaves[3:]))
        sides.append((out, norm, *state))
    for got, expected in zip(*sides, strict=True):
        assert (got - expected).norm() < 5e-3 * expected.norm()


INTERPRETED = Path(__file__).with_name("interpreted.py")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not there for this system")
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the kernels run as they are")
def test_flash_linear_attention_in_tritons_interpreter():
    env = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, INTERPRETED], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    worst = float(done.stdout.split()[-1])
    assert worst < 1e-5


def call_on(device: str, tokens: int = 8, dtype: torch.dtype = torch.float32, width: int = 64) -> SimpleNamespace:
    """What a tensor says of itself."""
    return SimpleNamespace(device=torch.device(device), dtype=dtype, shape=torch.Size((1, 2, tokens, width)))


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setattr(kernels, "ON", True)
    monkeypatch.setattr(kernels, "find_spec", lambda name: name)
    return monkeypatch


def test_auto_is_fused_on_a_gpu_and_eager_elsewhere(mode: pytest.MonkeyPatch):
    mode.setattr(kernels, "MODE", "auto")
    for kernel in (kernels.BAND, kernels.LINEAR):
        assert kernel.serves(call_on("cuda"))
        assert kernel.serves(call_on("cuda", dtype=torch.bfloat16))
        assert not kernel.serves(call_on("cpu"))
        assert not kernel.serves(call_on("cuda", tokens=1))
        assert not kernel.serves(call_on("cuda", dtype=torch.float64))
    assert not kernels.BAND.serves(call_on("cuda", width=8))
    assert kernels.LINEAR.serves(call_on("cuda", width=8))
    assert kernels.plan("cuda") == {"band attention": "FlexAttention", "linear attention": "flash-linear-attention"}
    mode.setattr(kernels, "find_spec", lambda name: None if name == "fla" else name)
    assert kernels.BAND.serves(call_on("cuda"))
    assert not kernels.LINEAR.serves(call_on("cuda"))
    assert "attnopt[gpu]" in kernels.plan("cuda")["linear attention"]


def test_fused_is_an_error_where_it_cannot_be_had(mode: pytest.MonkeyPatch):
    mode.setattr(kernels, "MODE", "fused")
    assert kernels.BAND.serves(call_on("cuda"))
    assert not kernels.BAND.serves(call_on("cpu", tokens=1))
    assert not kernels.BAND.serves(call_on("cpu", dtype=torch.float64))
    with pytest.raises(UserError, match=r"ATTNOPT_KERNELS: fused .* FlexAttention needs a CUDA device, not cpu"):
        band_attention(*draw("cpu", 2, 2, 9, 0), 4, 0.3)
    with pytest.raises(UserError, match="flash-linear-attention needs a CUDA device"):
        linear.linear_attention(*(t.exp() for t in draw("cpu", 2, 2, 9, 0)))
    with pytest.raises(UserError, match="heads of 16 or wider, not 8"):
        kernels.BAND.serves(call_on("cuda", width=8))
    mode.setattr(kernels, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs fla and triton: pip install 'attnopt\[gpu\]'"):
        kernels.LINEAR.serves(call_on("cuda"))


def test_doctor_says_which_kernels_run():
    said = " ".join(diagnose().split())
    assert f"kernel of band attention {kernels.plan(resolve_device('auto').type)['band attention']}" in said


@pytest.mark.slow
def test_the_setting_is_read_from_the_environment():
    code = "from attnopt.ops import dispatch as kernels; print(kernels.MODE, kernels.ON, kernels.plan('cuda')['band attention'])"
    env = os.environ | {"ATTNOPT_KERNELS": "eager"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "eager False eager (ATTNOPT_KERNELS)", done.stderr
    with pytest.raises(UserError, match="ATTNOPT_KERNELS: 'fast' is none of auto, eager, fused"):
        kernels.read_mode("fast")


@pytest.fixture
def chosen(mode: pytest.MonkeyPatch) -> Kernel:
    """The band's kernel as if a CPU were a GPU, and not yet checked."""
    mode.setattr(kernels, "MODE", "auto")
    kernel = Kernel("FlexAttention", "attnopt.ops.softmax.flex", ())
    mode.setattr(kernel, "lacks", lambda device: None)
    mode.setattr(kernels, "BAND", kernel)
    return kernel


@pytest.mark.slow
def test_a_call_goes_to_the_kernel_after_one_check_for_each_dtype(chosen: Kernel, monkeypatch: pytest.MonkeyPatch):
    widths, fused = [], flex.fused
    monkeypatch.setattr(flex, "fused", lambda *args, **kwargs: widths.append(args[3]) or fused(*args, **kwargs))
    leaves = draw("cpu", 4, 2, 50, 3)
    with torch.inference_mode():
        first = band_attention(*leaves, 7, 0.3)
    with kernels.eager():
        torch.testing.assert_close(first, band_attention(*leaves, 7, 0.3))
    band_attention(*leaves, 7, 0.3)
    assert widths == [20, 7, 7]
    assert chosen.checked == {(torch.device("cpu"), torch.float32)}
    band_attention(*(t.bfloat16() for t in leaves), 7, 0.3)
    assert widths[3:] == [20, 7]


@pytest.mark.parametrize("wrong", ["window", "lse", "gradient", "nan"])
def test_a_wrong_kernel_is_refused(chosen: Kernel, monkeypatch: pytest.MonkeyPatch, wrong: str):
    right = flex.fused

    def planted(q, k, v, window, scaling, **others):
        out, lse = right(
            q, k, v.detach() if wrong == "gradient" else v, window + (wrong == "window"), scaling, **others
        )
        if wrong == "gradient":
            out = out + 0 * v.sum()
        return out * (float("nan") if wrong == "nan" else 1), lse * (1.5 if wrong == "lse" else 1)

    monkeypatch.setattr(flex, "fused", planted)
    with pytest.raises(RunError, match=r"FlexAttention on cpu in float32 differs .* by .* set ATTNOPT_KERNELS=eager"):
        band_attention(*draw("cpu", 2, 2, 9, 0), 4, 0.3)
    assert not chosen.checked


def test_a_kernel_that_fails_is_an_error_with_a_way_out(chosen: Kernel, monkeypatch: pytest.MonkeyPatch):
    def broken(*_, **__):
        raise NotImplementedError("no such device\nand more")

    monkeypatch.setattr(flex, "fused", broken)
    with pytest.raises(RunError, match="failed: no such device; set ATTNOPT_KERNELS=eager"):
        band_attention(*draw("cpu", 2, 2, 9, 0), 4, 0.3)


def without_kernels(*args):
    with kernels.eager():
        return gla.eager(*args)


def test_the_linear_kernel_is_checked_too(mode: pytest.MonkeyPatch):
    calls = []
    mode.setattr(kernels, "MODE", "auto")
    mode.setattr(kernels.LINEAR, "lacks", lambda device: None)
    mode.setattr(kernels.LINEAR, "checked", set())
    mode.setattr(gla, "fused", lambda *args: calls.append(1) or without_kernels(*args))
    inputs = [t.exp() for t in draw("cpu", 4, 2, 40, 0)]
    torch.testing.assert_close(linear.linear_attention(*inputs)[0], linear.linear_attention_reference(*inputs)[0])
    assert len(calls) == 2
    mode.setattr(kernels.LINEAR, "checked", set())
    mode.setattr(gla, "fused", lambda q, k, v, state: without_kernels(q, k.flip(2), v.flip(2), state))
    with pytest.raises(RunError, match="flash-linear-attention on cpu in float32 differs"):
        linear.linear_attention(*inputs)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU takes a C++ compiler")
def test_a_compiled_mechanism_is_the_mechanism():
    mechanism = Window(Geometry(heads=2, kv_heads=2, head_dim=16, hidden=32, scaling=0.25), Window.Options())
    q, k, v = (t.detach() for t in draw("cpu", 2, 2, 100, 0))
    compiled = torch.compile(mechanism.extend, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(Inputs(q, k, v))[0], mechanism.extend(Inputs(q, k, v))[0])
