"""Which calls go to a fused GPU kernel, and the check that the kernel is right on this machine.

The environment variable ATTNOPT_KERNELS, read once, on import:

    auto    fused kernels on a CUDA device where what they need can be imported (the default)
    eager   never
    fused   always; a UserError where they cannot be had

In each setting single tokens and float64, the precision of checks, take the eager path, which has no fused twin there.
The first call of a kernel with a dtype on a device runs it and the eager path on a small random input, forward and
backward, and raises a RunError where the two differ by more than rounding.

`torch.compile(mechanism.extend)` on top of it is the user's to call: it helps a mechanism alone, and a training of the
bundled student not at all (docs/distillation.md).
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from attnopt.core.errors import RunError, UserError

VARIABLE = "ATTNOPT_KERNELS"
MODES = ("auto", "eager", "fused")

TOLERANCES = {torch.float32: 1e-2, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""What rounding may change, relative to a result's norm. Fused products in float32 may run in TF32, of 10 bits."""


def read_mode(given: str) -> str:
    """The given value of ATTNOPT_KERNELS. Raises UserError where it is none of MODES."""
    if given not in MODES:
        raise UserError(f"{VARIABLE}: '{given}' is none of {', '.join(MODES)}")
    return given


MODE = read_mode(os.environ.get(VARIABLE, "auto"))
ON = MODE == "fused" or (MODE == "auto" and torch.cuda.is_available())
"""Whether a call may go to a fused kernel at all."""


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """A context in which no call goes to a fused kernel."""
    global ON
    before, ON = ON, False
    try:
        yield
    finally:
        ON = before


@dataclass
class Kernel:
    """A function of this package that has a fused kernel beside it.

    Calling it runs the fused kernel, and before the first time on a device in a dtype compares it with the eager path.

    Attributes:
        name: how messages call it.
        module: the module that holds three functions: `fused`; `eager`, with the same arguments and results; and
            `example`, which makes from the arguments of a call a small case for both. It returns the tensors to
            differentiate by, and a function that, given `fused` or `eager`, calls it on these tensors.
        needs: packages that must be importable.
        width: the least width of a head that it takes.
        checked: the devices and dtypes on which it was found to agree with the eager path.
    """

    name: str
    module: str
    needs: tuple[str, ...]
    width: int = 1
    checked: set[tuple[torch.device, torch.dtype]] = field(default_factory=set)

    def lacks(self, device: str) -> str | None:
        """Why it cannot run on a type of device, such as "cuda" or "cpu"; None where it can."""
        if device != "cuda":
            return f"needs a CUDA device, not {device}"
        missing = [name for name in self.needs if find_spec(name) is None]
        return f"needs {' and '.join(missing)}: pip install 'attnopt[gpu]'" if missing else None

    def serves(self, q: Tensor) -> bool:
        """Whether a call with these queries, (B, H, T, *), is to go to the fused kernel.

        Raises:
            UserError: where ATTNOPT_KERNELS asks for it and it cannot run.
        """
        if not ON or q.shape[2] == 1 or q.dtype == torch.float64:
            return False
        lack = self.lacks(q.device.type)
        if lack is None and q.shape[3] < self.width:
            lack = f"needs heads of {self.width} or wider, not {q.shape[3]}"
        if lack and MODE == "fused":
            raise UserError(f"{VARIABLE}: fused was asked for, but {self.name} {lack}; set it to auto or eager")
        return lack is None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the fused kernel. Raises RunError where the first run in this dtype on this device disagrees."""
        module, key = import_module(self.module), (args[0].device, args[0].dtype)
        if key not in self.checked:
            self._check(module, args)
            self.checked.add(key)
        return module.fused(*args, **kwargs)

    def _check(self, module: Any, args: tuple[Any, ...]) -> None:
        """Raises RunError unless fused and eager agree on an example."""
        q, way_out = args[0], f"set {VARIABLE}=eager to run without it"
        where = f"{self.name} on {q.device} in {str(q.dtype).removeprefix('torch.')}"
        with eager(), torch.inference_mode(False), torch.enable_grad():
            leaves, call = module.example(*args)
            expected = _with_gradients(module.eager, leaves, call)
            try:
                got = _with_gradients(module.fused, leaves, call)
            except Exception as error:
                said = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise RunError(f"{where} failed: {said}; {way_out}") from error
        worst, tolerance = max(map(_deviation, got, expected)), TOLERANCES[q.dtype]
        if worst > tolerance:
            raise RunError(
                f"{where} differs from the eager path by {worst:.1e} of its size, where rounding explains "
                f"{tolerance:.0e}; {way_out}"
            )


BAND = Kernel("FlexAttention", "attnopt.ops.softmax.flex", ("triton",), width=16)
LINEAR = Kernel("flash-linear-attention", "attnopt.ops.linear.gla", ("fla", "triton"))


def plan(device: str) -> dict[str, str]:
    """What runs on a type of device, by operation: the fused kernel's name, or "eager" with the reason."""
    rows = {}
    for operation, kernel in (("band attention", BAND), ("linear attention", LINEAR)):
        lack = VARIABLE if MODE == "eager" else kernel.lacks(device)
        rows[operation] = f"eager ({lack})" if lack else kernel.name
    return rows


Call = Callable[[Callable[..., Any]], tuple[Tensor, ...]]


def _with_gradients(function: Callable[..., Any], leaves: list[Tensor], call: Call) -> list[Tensor]:
    """The results of a call, and the gradients of a fixed weighted sum of them by the leaves."""
    results = call(function)
    slopes = [torch.linspace(-1, 1, t.numel(), device=t.device, dtype=t.dtype).view_as(t) for t in results]
    return [*results, *torch.autograd.grad(results, leaves, slopes)]


def _deviation(got: Tensor, expected: Tensor) -> float:
    """|got - expected| / |expected| in Euclidean norms; infinite where that is not a number."""
    got, expected = got.detach().double(), expected.detach().double()
    ratio = float((got - expected).norm() / expected.norm())
    return ratio if ratio == ratio else float("inf")
