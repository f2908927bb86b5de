"""Where to compute and in which precision."""

import contextlib
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from attnopt.core.errors import UserError


def resolve_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Raises UserError where a GPU was asked for and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda was asked for, but torch sees no GPU; set it to auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_precision(name: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it faster than float32."""
    if name != "auto":
        return getattr(torch, name)
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> Any:
    return torch.autocast(device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor there; to a GPU from pinned memory, so that nobody waits for the copy."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def token_ids(blocks: np.ndarray, device: torch.device) -> Tensor:
    """Blocks of tokens of any integer type as int64 on a device, as models want them."""
    return on_device(blocks.astype(np.int64), device)


def memory_in_use(device: torch.device) -> dict[str, float]:
    """MiB: this process' resident set, and what the GPU allocator holds (0 without one)."""
    import psutil

    cuda = device.type == "cuda"
    return {
        "rss_mib": round(psutil.Process().memory_info().rss / 2**20, 1),
        "gpu_allocated_mib": torch.cuda.max_memory_allocated() / 2**20 if cuda else 0.0,
        "gpu_reserved_mib": torch.cuda.max_memory_reserved() / 2**20 if cuda else 0.0,
    }
