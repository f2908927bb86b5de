"""How many programs FlexAttention may be compiled to in one process, with a compiler that takes each graph as it is."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import pytest
import torch
from torch.nn.attention import flex_attention as torch_flex

from attnopt.ops.softmax import flex


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernel of a GPU on this CPU, where FlexAttention would refuse gradients."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    as_it_is = partial(torch.compile, backend=lambda graph, _: graph.forward)
    monkeypatch.setattr(torch, "compile", as_it_is)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8):
        made = flex._kernel.__wrapped__(True)
        monkeypatch.setattr(flex, "_kernel", lambda _: made)
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("kernel")
def test_one_process_serves_every_precision_bias_and_sharing_with_and_without_gradients():
    for dtype, biased, kv_heads, grad in product((torch.float32, torch.bfloat16), (0, 1), (2, 1), (False, True)):
        q, k, v = (torch.randn(1, heads, 40, 16, dtype=dtype, requires_grad=grad) for heads in (2, kv_heads, kv_heads))
        bias = torch.randn(2, 8) if biased else None
        out, _ = flex.fused(q, k, v, 8, 0.25, bias=bias)
        expected, _ = flex.eager(q.float(), k.float(), v.float(), 8, 0.25, bias=bias)
        torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
