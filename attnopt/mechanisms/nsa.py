"""Native sparse attention: a window, far blocks pooled to slots, and the best of these blocks in full.

Positions are cut into blocks of n tokens. The window of token t is its last `window` tokens, and what is left of the
block in which they begin. All blocks before are far. Each far block is a slot, its keys and values pooled by weights
that are learned, sum to 1 and start equal; the `selected` slots with the largest softmax(q . slot), summed over the
query heads that share a key/value head, are read token by token. Keys are pooled as they come, rotated ones in a rotary
model. The branches become one output by

    merge: lse    one softmax over window tokens, selected tokens and the slots left over, each of which stands for n
                  tokens: score(slot) = scaling q . k_slot + log n + mass_h, mass_h learned from 0. Every token counts
                  once, so with all far blocks selected it equals softmax.
    merge: gates  the paper's: a softmax each over window, selected tokens and all slots, averaged by gates of the
                  hidden state. Unlike the paper's the gates sum to 1, over the branches that have keys.

Source: Yuan et al. 2025, there trained from scratch, here on the teacher's own keys and values. Approximated: the
tokens of far blocks that are not selected, by their slot. Start: the scores are the teacher's own, slots are means, and
`fit` sets the mass of the slots (or the gates) to the attention that the teacher gives to the tokens they stand for.

With `backend: package` the package native-sparse-attention-pytorch computes it, see `shared/nsa_package.py`.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from attnopt.mechanisms.base import Geometry, Inputs, Mechanism, MechanismOptions, State
from attnopt.mechanisms.shared.nsa_native import NativeNSA
from attnopt.mechanisms.shared.nsa_package import PackageNSA

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class NSA(Mechanism):
    source = "https://arxiv.org/abs/2502.11089"
    paper = "Yuan et al. 2025"
    growth = "linear"
    cost = "(window + selected block + S / block) D"

    class Options(MechanismOptions):
        backend: Literal["native", "package"] = "native"
        """What computes it: the kernels of attnopt, or the package native-sparse-attention-pytorch."""
        block: Positive = 8
        """Tokens pooled into one slot, and selected together."""
        selected: Count = 2
        """Blocks that each token reads in full."""
        window: Positive = 16
        """Most recent tokens that each token reads in full: these at least, from the start of a block."""
        merge: Literal["lse", "gates"] = "lse"
        """How the native branches become one: by their share in one softmax, or by gates."""
        branches: Literal["all", "tokens", "far", "window", "selected", "compressed"] = "all"
        """Which native branches there are, to see what each does: tokens are window and selected, far are selected and
        compressed. Zero where they have no key."""

        @model_validator(mode="after")
        def _consistent(self) -> "NSA.Options":
            if self.backend == "package" and (self.merge != "lse" or self.branches != "all"):
                raise ValueError("merge and branches are for backend: native; the package has gates and all branches")
            return self

    def __init__(self, geometry: Geometry, options: Options):
        super().__init__(geometry, options)
        self.backend: NativeNSA | PackageNSA
        if options.backend == "package":
            self.backend = PackageNSA(geometry, options.block, options.selected, options.window)
            self.normalised, self.working = False, "quadratic"
        else:
            self.backend = NativeNSA(geometry, options)
            self.normalised = options.branches in ("all", "tokens", "window")

    def extend(self, x: Inputs, state: State = None) -> tuple[Tensor, State]:
        return self.backend.extend(x, state)

    def reference(self, x: Inputs) -> Tensor:
        return self.backend.reference(x)

    def fit(self, x: Inputs) -> None:
        self.backend.fit(x)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        return self.backend.state_bytes(batch, length, dtype)

    @classmethod
    def limit(cls, length: int) -> Options:
        return cls.Options(selected=-(-length // 8), block=8)

    @classmethod
    def conformance_options(cls) -> dict[str, Options]:
        return {
            "default": cls.Options(),
            "gates": cls.Options(merge="gates", block=3, selected=3, window=4),
            "tokens": cls.Options(branches="tokens"),
            "far": cls.Options(branches="far", block=5),
            "package": cls.Options(backend="package"),
        }
