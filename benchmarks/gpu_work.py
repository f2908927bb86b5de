"""What gpu.py does in fresh processes: parity's cases, a random model to be measured, a step of the trainer.

Parity holds kernels against the eager path on the device, and both against the eager path on the CPU.

Every case is one mechanism in one dtype on random inputs and randomised parameters, as rounded to that dtype: outputs,
gradients by the inputs and the parameters, the state after, single tokens after a prefill. A figure is |a - b| / |b| in
Euclidean norms; that of a gradient which is small beside the others is taken of a hundredth of the largest.
"""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from attnopt.bench.model_runner import ModelRunner
from attnopt.bench.rulers import high_water, resting
from attnopt.bench.work import Runner, Setting
from attnopt.conformance.case import Case, gradients, random_weights, require_gradients, stream
from attnopt.mechanisms import Geometry, Inputs, Mechanism, load_mechanism
from attnopt.ops import dispatch
from attnopt.student.attach import attach
from attnopt.student.swap import Swap
from attnopt.targets.dataset import Dataset
from attnopt.training.params import AlignParams, DistillParams, LoraParams, SeedParams, Seeds, TransferParams, Variant
from attnopt.training.trainer import Trainer

MIB = 2**20
DTYPES = (torch.float32, torch.bfloat16)
SINGLE = 6
"""Tokens that come one by one after the prefill."""
WARM, TIMED = 2, 8
"""Steps of the trainer before the clock starts, and on it."""
SMALL = 1e-2
"""Of the largest gradient's norm: the least that another's deviation is divided by."""


class Shape(NamedTuple):
    """Of a case: `long` tokens are computed with a state, `short` ones in the form of training."""

    geometry: Geometry
    long: int
    short: int


FULL = Shape(Geometry(heads=9, kv_heads=3, head_dim=64, hidden=576, scaling=0.125), long=700, short=150)
TOY = Shape(Geometry(heads=4, kv_heads=2, head_dim=16, hidden=32, scaling=0.25), long=90, short=40)

SMOLLM2: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
}
POSITIONS = 2**17

Found = dict[str, Tensor]


def cases(kind: str, device: str, shape: Shape) -> Iterator[dict[str, Any]]:
    """Runs in a fresh process. Yields for each dtype what `compared` finds, or the line of its error."""
    torch.manual_seed(0)
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        try:
            yield {"dtype": name, **compared(kind, dtype, torch.device(device), shape)}
        except Exception as error:
            yield {"dtype": name, "error": error_line(error)}


def error_line(error: BaseException) -> str:
    """The last line of what an error says, with its type: a fresh process sends its whole traceback."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    last = lines[-1].strip()[:300] if lines else ""
    return last if isinstance(error, RuntimeError) and "Traceback" in str(error) else f"{type(error).__name__}: {last}"


def compared(kind: str, dtype: torch.dtype, device: torch.device, shape: Shape) -> dict[str, Any]:
    """The largest deviation of each sort, what is allowed, and the fused kernels that ran.

    Sorts: "kernels" against eager on the device; "float32" and "float64" against eager on the CPU; "steps" against the
    whole. Each is {what: deviation} with `what` of output, gradient, state.
    """
    mechanism, x = build(kind, dtype, shape)
    kernels = (dispatch.BAND, dispatch.LINEAR)
    for kernel in kernels:
        kernel.checked.clear()
    ours = measured(mechanism, x, device, shape)
    fused = [kernel.name for kernel in kernels if kernel.checked]
    with dispatch.eager():
        eager = measured(mechanism, x, device, shape)
        on_cpu = {
            name: measured(
                mechanism.to(getattr(torch, name)), cast(x, getattr(torch, name)), torch.device("cpu"), shape
            )
            for name in ("float32", "float64")
        }
    against = {"kernels": eager, **on_cpu}
    found = {name: worst(ours, expected) for name, expected in against.items()}
    if mechanism.control != "leaks":
        found["steps"] = {"output": deviation(ours["steps"], ours["output"][:, :, -SINGLE:])}
    allowed = dispatch.TOLERANCES[dtype]
    passed = all(value <= allowed for sort in found.values() for value in sort.values())
    return {"found": found, "allowed": allowed, "passed": passed, "fused": fused}


def build(kind: str, dtype: torch.dtype, shape: Shape) -> tuple[Mechanism, Inputs]:
    """A mechanism with its default options and noise on its parameters, on the CPU, and inputs, both of the dtype."""
    cls = load_mechanism(kind)
    case = Case(cls, cls.Options(), shape.geometry)
    return case.build(dtype=torch.float32).to(dtype), case.inputs(shape.long, dtype=dtype)


def cast(x: Inputs, to: torch.dtype | torch.device) -> Inputs:
    return x.map(lambda t, _: t.to(to))


def measured(mechanism: Mechanism, x: Inputs, device: torch.device, shape: Shape) -> Found:
    """Everything that is compared, as it comes out on a device: float64 on the CPU."""
    mechanism, x = copy.deepcopy(mechanism).to(device), cast(x, device)
    out, state = mechanism(x)
    found = {"output": out} | {f"state {i}": t for i, t in enumerate(tensors_of(state))}
    found["steps"] = stream(mechanism, x, [shape.long - SINGLE, *[1] * SINGLE])[0][:, :, -SINGLE:]
    found |= differentiated(mechanism, x, lambda inputs: mechanism(inputs)[0], "")
    short = x.slice(0, shape.short)
    found |= differentiated(mechanism, short, lambda inputs: mechanism(inputs, keeps_state=False)[0], " in training")
    return {name: t.detach().cpu().double() for name, t in found.items()}


def tensors_of(state: Any) -> list[Tensor]:
    return [t for t in tree_leaves(state) if isinstance(t, Tensor)]


def differentiated(mechanism: nn.Module, x: Inputs, run: Callable[[Inputs], Tensor], way: str) -> Found:
    """The output, and its gradients by the inputs and the parameters."""
    leaf_inputs, leaves = require_gradients(x)
    named = {**leaves, **dict(mechanism.named_parameters())}
    out = run(leaf_inputs)
    weights = random_weights(out.shape).to(out)
    grads = gradients((out * weights).sum(), list(named.values()))
    return {f"output{way}": out} | {f"gradient of {n}{way}": g for n, g in zip(named, grads, strict=True)}


def worst(got: Found, expected: Found) -> dict[str, float]:
    """The largest deviation of outputs, gradients and state; infinite where one side has other tensors."""
    if got.keys() != expected.keys():
        return {"state": float("inf")}
    largest = max((float(t.norm()) for name, t in expected.items() if name.startswith("gradient")), default=0.0)
    found: dict[str, float] = {}
    for name, t in got.items():
        sort = {"steps": "output"}.get(name.split()[0], name.split()[0])
        least = SMALL * largest if sort == "gradient" else 0.0
        found[sort] = max(found.get(sort, 0.0), deviation(t, expected[name], least))
    return found


def deviation(got: Tensor, expected: Tensor, least: float = 0.0) -> float:
    """|got - expected| / |expected|, of at least `least`; what is equal, infinities too, counts as no deviation."""
    if got.shape != expected.shape:
        return float("inf")
    same = got == expected
    if bool(same.all()):
        return 0.0
    finite = torch.where(expected.isfinite(), expected, 0)
    ratio = float(torch.where(same, 0, got - expected).norm() / finite.norm().clamp(min=max(least, 1e-30)))
    return ratio if ratio == ratio else float("inf")


@dataclass(frozen=True)
class RandomLlama:
    """A Llama with random weights and a mechanism in every layer; `shape` are pairs of LlamaConfig's arguments."""

    name: str
    shape: tuple[tuple[str, Any], ...]

    def load(self, setting: Setting) -> Runner:
        return ModelRunner(attach(llama(dict(self.shape), setting.device), Swap(self.name)), setting)


def llama(shape: dict[str, Any], device: torch.device) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**shape, max_position_embeddings=POSITIONS, tie_word_embeddings=True)
    with torch.device(device):
        return LlamaForCausalLM(config).eval()


def training(kind: str, shape: dict[str, Any], device: str, batch: int, tokens: int) -> Iterator[dict[str, Any]]:
    """Runs in the fresh process. Yields tokens per second, and the peak of a step above what lay in memory before."""
    cuda = device == "cuda"
    teacher = llama(shape, torch.device(device)).requires_grad_(False)
    blocks = np.random.default_rng(0).integers(0, shape["vocab_size"], (2 * batch, tokens))
    cls = load_mechanism(kind)
    variant = Variant(
        name=kind,
        kind=kind,
        options=cls.Options(),
        seeds=[0],
        seed=SeedParams(),
        transfer=TransferParams(),
        align=AlignParams(),
        distill=DistillParams(steps=WARM + TIMED + 1, batch=batch, precision="bfloat16"),
        lora=LoraParams(),
    )
    trainer = Trainer(Dataset(teacher, {"train": blocks, "valid": blocks}, {}), variant, Seeds(0, 0, 0))
    trainer.prepare()
    phase = trainer.start("distill")
    trainer.log.flops["distill", tokens] = 0  # what is there is not counted again
    batches = trainer.batches.read(phase)
    step = partial(_step, trainer, phase, batches, cuda)
    seconds = sorted([step() for _ in range(WARM + TIMED)][WARM:])
    before = resting(cuda)
    with high_water(cuda) as peak:
        step()
    yield {
        "mechanism": kind,
        "outcome": "ok",
        "tokens_per_s": round(batch * (tokens - 1) / seconds[len(seconds) // 2], 1),
        "peak_mib": round((peak.bytes - before) / MIB, 1),
        "peak_reserved_mib": None if peak.reserved is None else round(peak.reserved / MIB, 1),
        "resting_mib": round(before / MIB, 1),
    }


def _step(trainer: Trainer, phase: Any, batches: Iterator[Any], cuda: bool) -> float:
    start = time.perf_counter()
    trainer.update(phase, next(batches))
    phase.step += 1
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
