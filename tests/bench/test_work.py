"""How a process computes."""

import torch

from attnopt.bench.params import BenchParams
from attnopt.bench.work import dtype_of, settle_process


def test_the_precision_is_the_devices_own_unless_told():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [dtype_of(BenchParams(), d) for d in (cpu, gpu)] == [torch.float32, torch.bfloat16]
    assert dtype_of(BenchParams(dtype="float16"), cpu) == torch.float16


def test_a_process_is_settled_as_the_params_say():
    before = torch.get_num_threads()
    try:
        setting = settle_process(BenchParams(threads=3, batch=4, decode_tokens=5, device="cpu"))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert (setting.batch, setting.decode_tokens, setting.dtype, setting.cuda) == (4, 5, torch.float32, False)
