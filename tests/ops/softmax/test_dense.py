"""The dense form against PyTorch's own attention."""

import torch
import torch.nn.functional as F

from attnopt.ops.softmax.dense import ages, dense_attention, only


def test_under_a_causal_mask_it_is_torchs_causal_attention_with_grouped_heads() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 30, 8, dtype=torch.float64) for heads in (4, 2, 2))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(dense_attention(q, k, v, only(ages(30, q) >= 0, q), 0.3), expected)


def test_half_precision_is_computed_in_float32_and_rounded_once() -> None:
    torch.manual_seed(0)
    low = [torch.randn(1, 2, 20, 8, dtype=torch.bfloat16) for _ in range(3)]
    mask = only(ages(20, low[0]) >= 0, low[0])
    out = dense_attention(*low, mask, 0.3)
    assert (out.dtype, mask.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(out, dense_attention(*(t.float() for t in low), mask, 0.3).bfloat16())
