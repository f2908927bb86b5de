"""The checks. Each takes a mechanism on one geometry and yields what it measured; all but `numerics` run in float64."""

import math
from collections.abc import Callable
from functools import partial

import safetensors.torch
import torch
from torch import Tensor

from attnopt.conformance.case import (
    LENGTHS,
    Case,
    Finding,
    Findings,
    NotApplicable,
    compare,
    deviation,
    gradients,
    random_weights,
    require_gradients,
    same_bits,
    snapshot,
    splits,
    stream,
)
from attnopt.conformance.causal import future_effects, ways
from attnopt.conformance.memory import peak_bytes
from attnopt.mechanisms import Inputs, Mechanism
from attnopt.mechanisms.base import State, measured_bytes, select_rows
from attnopt.mechanisms.shared.states import filled_bytes
from attnopt.mechanisms.softmax import Softmax
from attnopt.ops.tensors import repeat_heads


def causality(case: Case) -> Findings:
    """No token reaches an earlier output: not in the forward pass, however large its key, nor through a gradient."""
    mechanism = case.build()
    for length in LENGTHS[1:]:
        cuts = list(range(0, length - 1, 3 if length < 64 else 7))
        for way, run in ways(mechanism).items():
            yield from future_effects(run, case.inputs(length, batch=1), cuts, f"length {length}{way}", 1e-9)


def prefix(case: Case) -> Findings:
    """f(x[:t]) = f(x)[:t]: an output does not depend on how long the sequence will be."""
    mechanism = case.build()
    for length in LENGTHS[1:]:
        x = case.inputs(length)
        out, _ = mechanism(x)
        for t in sorted({1, 2, length // 4, length // 2 + 1, length - 2, length - 1} & set(range(1, length))):
            yield compare(mechanism(x.slice(0, t))[0], out[:, :, :t], f"first {t} of {length}")


def streaming(case: Case) -> Findings:
    """Any split into prefill, chunks and steps gives the whole; a state stays as it was, and can be continued twice."""
    mechanism = case.build()
    for length in LENGTHS:
        x = case.inputs(length)
        whole, _ = mechanism(x)
        for name, sizes in splits(length).items():
            yield compare(stream(mechanism, x, sizes)[0], whole, f"length {length} in {name}")
    yield from _branches(mechanism, case.inputs(63), case.inputs(63, seed=2))


def _branches(mechanism: Mechanism, x: Inputs, other: Inputs) -> Findings:
    """Two continuations of one state do not see each other."""
    _, state = mechanism(x.slice(0, 41))
    before = snapshot(state)
    _, left = mechanism(x.slice(41, 50), state)
    mechanism(other.slice(41, 50), state)
    yield same_bits(state, before, "the state given to a call, after it")
    out, _ = mechanism(x.slice(50, 63), left)
    yield compare(out, mechanism(x)[0][:, :, 50:], "a state continued after its parent was continued elsewhere")


def padding(case: Case) -> Findings:
    """Rows of a left-padded batch, and what follows them, equal the same rows alone; rows may be permuted."""
    mechanism, length, pads = case.build(), 40, (0, 5, 39)
    x, after = case.inputs(length, batch=3), case.inputs(3, batch=3, seed=2)
    keep = torch.arange(length) >= torch.tensor(pads)[:, None]
    out, state = mechanism(_with_keep(x, keep))
    next_out, _ = mechanism(after, state)
    for row, pad in enumerate(pads):
        alone, alone_state = mechanism(_rows(x, [row]).slice(pad))
        yield compare(out[[row], :, pad:], alone, f"row with {pad} padded tokens of {length}")
        yield compare(out[[row], :, :pad], torch.zeros_like(out[[row], :, :pad]), f"the {pad} padded tokens")
        alone_next, _ = mechanism(_rows(after, [row]), alone_state)
        yield compare(next_out[[row]], alone_next, f"tokens after a row with {pad} padded tokens")
    single, _ = mechanism(_with_keep(_rows(x, [1]), keep[1:2]))
    yield compare(single, out[1:2], "a batch of one padded row")
    yield from _permuted(mechanism, x, after)


def _permuted(mechanism: Mechanism, x: Inputs, after: Inputs) -> Findings:
    order = [2, 0, 1]
    out, state = mechanism(x)
    next_out, _ = mechanism(after, state)
    yield compare(mechanism(_rows(x, [1]))[0], out[[1]], "a row of a batch")
    yield compare(mechanism(_rows(x, order))[0], out[order], "a permuted batch")
    moved = select_rows(state, torch.tensor(order))
    yield compare(mechanism(_rows(after, order), moved)[0], next_out[order], "a permuted state")


def _rows(x: Inputs, rows: list[int]) -> Inputs:
    return x.map(lambda t, _: t[rows])


def _with_keep(x: Inputs, keep: Tensor) -> Inputs:
    return Inputs(x.q, x.k, x.v, x.hidden, keep)


def limit(case: Case) -> Findings:
    """With its capacity at the maximum, as constructed, it equals softmax."""
    if case.cls.limit(LENGTHS[0]) is None:
        raise NotApplicable("no options make it equal softmax")
    softmax = Softmax(case.geometry, Softmax.Options())
    for length in LENGTHS:
        x = case.inputs(length)
        mechanism = Case(case.cls, case.cls.limit(length), case.geometry).build(randomised=False)
        yield compare(mechanism(x)[0], softmax.reference(x), f"length {length} against softmax")
        chunks = splits(length)["chunks"]
        yield compare(
            stream(mechanism, x, chunks)[0], softmax.reference(x), f"length {length} in chunks, against softmax"
        )


def ones(case: Case) -> Findings:
    """Values of 1 give outputs of 1: the weights of every row sum to 1."""
    mechanism = case.build()
    if not mechanism.normalised:
        raise NotApplicable("its weights are not normalised")
    for length in LENGTHS:
        x = case.inputs(length)
        out, _ = mechanism(Inputs(x.q, x.k, torch.ones_like(x.v), x.hidden))
        yield compare(out, torch.ones_like(out), f"length {length}")


def reference(case: Case) -> Findings:
    """Outputs and all gradients, also through the state and without one, equal those of a loop over tokens."""
    mechanism = case.build()
    for length in LENGTHS:
        x = case.inputs(length)
        expected = _out_and_gradients(mechanism, x, mechanism.reference)
        cuts = [[length]] if mechanism.control == "leaks" else [[length], splits(length)["chunks"]]
        for way, run in _ways(mechanism, *cuts).items():
            got = _out_and_gradients(mechanism, x, run)
            for name, tensor in expected.items():
                yield compare(got[name], tensor, f"{name}, length {length}, {way}", allowed=1e-8)


def _ways(mechanism: Mechanism, *cuts: list[int]) -> dict[str, Callable[[Inputs], Tensor]]:
    """Its ways to compute a whole sequence, and in pieces with a state, for each list of sizes with several."""
    runs = {f"whole{way}": run for way, run in ways(mechanism).items()}
    return runs | {f"pieces: {len(sizes)}": partial(_streamed, mechanism, sizes) for sizes in cuts if len(sizes) > 1}


def _streamed(mechanism: Mechanism, sizes: list[int], x: Inputs) -> Tensor:
    return stream(mechanism, x, sizes)[0]


def _out_and_gradients(mechanism: Mechanism, x: Inputs, run: Callable[[Inputs], Tensor]) -> dict[str, Tensor]:
    leaf_inputs, leaves = require_gradients(x)
    named = {**leaves, **dict(mechanism.named_parameters())}
    out = run(leaf_inputs)
    grads = gradients((out * random_weights(out.shape)).sum(), list(named.values()))
    return {"output": out, **{f"gradient of {name}": g for name, g in zip(named, grads, strict=True)}}


BF16_RATIO = 0.03
"""Allowed |bf16 - fp32| / |fp32|, both Euclidean norms over an output, on the same bf16-rounded inputs."""


def numerics(case: Case) -> Findings:
    """In float32, finite at norms x1, x8, x64 and beside one key of x64; on bf16 inputs near the float32 result."""
    mechanism = case.build(dtype=torch.float32)
    for scale in (1, 8, 64):
        yield from _finite(mechanism, case.inputs(100, scale=scale, dtype=torch.float32), f"norms x{scale}")
    x = case.inputs(100, dtype=torch.float32)
    x.k[:, :, 30] *= 64
    yield from _finite(mechanism, x, "one key of norm x64")
    yield _bf16(mechanism, case)


def _finite(mechanism: Mechanism, x: Inputs, where: str) -> Findings:
    leaf_inputs, leaves = require_gradients(x)
    named = {**leaves, **dict(mechanism.named_parameters())}
    for way, run in _ways(mechanism, [60, 39, 1]).items():
        out = run(leaf_inputs)
        grads = gradients(out.sum(), list(named.values()))
        for name, t in [("output", out), *[(f"gradient of {n}", g) for n, g in zip(named, grads, strict=True)]]:
            yield Finding(0.0 if bool(t.isfinite().all()) else float("inf"), 0.0, f"{name} finite at {where}, {way}")


def _bf16(mechanism: Mechanism, case: Case) -> Finding:
    """Steps of values near -1 after a prefill of values near 1: running sums kept in bf16 would stand still."""
    prefill, steps = 640, 48
    x = case.inputs(prefill + steps, batch=1, dtype=torch.float32)
    x.v.div_(10)[:, :, :prefill] += 1
    x.v[:, :, prefill:] -= 1
    low = x.map(lambda t, _: t.bfloat16())
    with torch.no_grad():
        got, expected = (
            stream(mechanism, inputs, [prefill] + [1] * steps)[0][:, :, prefill:].float()
            for inputs in (low, low.map(lambda t, _: t.float()))
        )
    ratio = float((got - expected).norm() / expected.norm().clamp(min=1e-6))
    return Finding(ratio, BF16_RATIO, "bf16 inputs against fp32")


def determinism(case: Case) -> Findings:
    """One seed, one mechanism; saved and loaded it is the same bit for bit; nothing of a sequence stays behind."""
    one, two = case.build(randomised=False), case.build(randomised=False)
    yield same_bits(dict(one.state_dict()), dict(two.state_dict()), "parameters and buffers of the same seed")
    x, one = case.inputs(63), case.build()
    out, _ = one(x)
    yield compare(case.build()(x)[0], out, "outputs of the same seed, fitted to the same data")
    stream(one, case.inputs(41, batch=3, seed=5), [20, 20, 1])
    yield same_bits(one(x)[0], out, "a fresh state after another sequence")
    other = case.build(seed=1)
    saved = {name: t.contiguous() for name, t in one.state_dict().items()}
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(saved)))
    yield same_bits(other(x)[0], out, "outputs after saving and loading")


def grouped(case: Case) -> Findings:
    """Shared key/value heads equal as many repeated ones (queries equal within a group, which may share choices)."""
    heads, kv_heads = case.geometry.heads, case.geometry.kv_heads
    full = Case(case.cls, case.options, type(case.geometry)(**{**vars(case.geometry), "kv_heads": heads}))
    shared, repeated = case.build(), full.build()
    if not (shared.alike_when_repeated and repeated.alike_when_repeated):
        raise NotApplicable("with each head repeated it is another mechanism")
    own = repeated.state_dict()
    repeated.load_state_dict({n: _repeat_groups(t, own[n].shape, kv_heads) for n, t in shared.state_dict().items()})
    for length in LENGTHS:
        x = case.inputs(length)
        q = repeat_heads(x.q[:, :: heads // kv_heads], heads)
        out, _ = shared(Inputs(q, x.k, x.v, x.hidden))
        expected, _ = repeated(Inputs(q, repeat_heads(x.k, heads), repeat_heads(x.v, heads), x.hidden))
        yield compare(out, expected, f"length {length}")


def _repeat_groups(t: Tensor, shape: torch.Size, groups: int) -> Tensor:
    """A parameter of `groups` heads, or of a part of them, as one of `shape`: a dimension that has to grow is (those
    heads, the rest) flattened."""
    for dim, size in enumerate(shape):
        if t.shape[dim] != size:
            repeats = size // t.shape[dim]
            own = math.gcd(groups, t.shape[dim])
            t = t.unflatten(dim, (own, -1)).repeat_interleave(repeats, dim).flatten(dim, dim + 1)
    return t


def memory(case: Case) -> Findings:
    """The state holds the bytes declared, and grows as declared; peak memory grows with the length, not its square."""
    mechanism = case.build(dtype=torch.float32)
    first, short, long = (mechanism.state_bytes(1, length, torch.float32) for length in (1, 2**15, 2**16))
    if mechanism.growth == "constant":
        yield Finding(abs(short - first), 0, "bytes of a constant state at 2^15 tokens - at 1")
    yield Finding(long / max(short, 1), 2.01 if mechanism.growth == "linear" else 1, "state at 2^16 tokens / at 2^15")
    for dtype in (torch.float32, torch.bfloat16):
        for length in (63, 100):
            declared = mechanism.state_bytes(3, length, dtype)
            for name, sizes in {"whole": [length], "chunks": splits(length)["chunks"]}.items():
                with torch.no_grad():
                    _, state = stream(mechanism, case.inputs(length, batch=3, dtype=dtype), sizes)
                has_room = mechanism.growth != "constant" and name == "chunks"
                yield from _held(state, declared, has_room, f"{length}, {dtype}, {name}")
    allowed = 2.5 if mechanism.working == "linear" else 4.5
    long_peak, short_peak = (_peak(mechanism, case, length) for length in (1024, 512))
    yield Finding(long_peak / max(short_peak, 1), allowed, "peak memory at 1024 tokens / at 512")


def _held(state: State, declared: int, has_room: bool, where: str) -> Findings:
    """A state holds what is declared, in no more memory, or where it grows step by step in at most twice as much."""
    filled, memory = filled_bytes(state), measured_bytes(state)
    yield Finding(abs(filled - declared), 0, f"{filled} bytes held, {declared} declared ({where})")
    allowed = declared * (2 if has_room else 1)
    yield Finding(
        max(memory - allowed, 0), 0, f"{memory} bytes held with what lies behind, {allowed} allowed ({where})"
    )


def _peak(mechanism: Mechanism, case: Case, length: int) -> int:
    """Bytes alive at the worst moment of a forward and backward pass over one sequence."""
    leaf_inputs, leaves = require_gradients(case.inputs(length, batch=1, dtype=torch.float32))
    named = [*leaves.values(), *mechanism.parameters()]
    return peak_bytes(lambda: gradients(mechanism(leaf_inputs)[0].sum(), named))


def parameters(case: Case) -> Findings:
    """No parameter is dead: each has a gradient, or changes the output when it is changed."""
    mechanism, x = case.build(), case.inputs(100)
    named = dict(mechanism.named_parameters())
    if not named:
        raise NotApplicable("it has no parameters")
    out, _ = mechanism(x)
    grads = gradients((out * random_weights(out.shape)).sum(), list(named.values()))
    for (name, p), grad in zip(named.items(), grads, strict=True):
        alive = float(grad.abs().max()) > 1e-9 or _influence(mechanism, p, x, out) > 1e-9
        yield Finding(0.0 if alive else 1.0, 0.0, f"{name} dead")


@torch.no_grad()
def _influence(mechanism: Mechanism, p: Tensor, x: Inputs, out: Tensor) -> float:
    """How far the output moves when one parameter does."""
    before = p.clone()
    p += 1
    moved = deviation(mechanism(x)[0], out)
    p.copy_(before)
    return moved
