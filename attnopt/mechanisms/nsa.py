"""Native sparse attention: compressed blocks, the best of them in full, and a sliding window (Yuan et al. 2025).

With `backend: package`: the package native-sparse-attention-pytorch, see `_nsa_package.py`.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from attnopt.mechanisms._nsa_package import PackageNSA
from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, MechanismOptions, State

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class NSA(Mechanism):
    source = "https://arxiv.org/abs/2502.11089"
    growth = "linear"
    cost = "(window + selected block + S / block) D"

    class Options(MechanismOptions):
        backend: Literal["package"] = "package"
        """Who computes it: the package native-sparse-attention-pytorch."""
        block: Positive = 8
        """Tokens pooled into one compressed slot, and selected together."""
        selected: Count = 4
        """Blocks that each token reads in full."""
        window: Count = 16
        """Most recent tokens that each token reads in full."""

    def __init__(self, geometry: Geometry, options: Options):
        super().__init__(geometry, options)
        self.normalised = False
        self.package = PackageNSA(geometry, options.block, options.selected, options.window)

    def extend(self, x: Inputs, state: State = None) -> tuple[Tensor, State]:
        return self.package.extend(x, state)

    def reference(self, x: Inputs) -> Tensor:
        return self.package.reference(x)

    def fit(self, x: Inputs) -> None:
        self.package.fit(x)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        return self.package.state_bytes(batch, length, dtype)
