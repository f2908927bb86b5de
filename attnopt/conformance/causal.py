"""Does the future reach the past? The check that matters most, and its quick form for a mechanism about to train."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from attnopt.conformance.case import Finding, Findings, gradients, random_weights, randomise, require_gradients
from attnopt.mechanisms import Inputs, Mechanism


def future_effects(run: Callable[[Inputs], Tensor], x: Inputs, cuts: list[int], where: str, allowed: float) -> Findings:
    """How far tokens after a cut move outputs up to it, and the gradients of these outputs to those tokens.

    Args:
        run: gives a mechanism's output.
        x: one sequence, batch 1; all cuts are tried at once, one row of a batch for each.
        cuts: positions; the tokens after them are replaced, with keys 3, 10 and 30 times as large as usual.
    """
    length = x.q.shape[2]
    rows = x.map(lambda t, _: t.expand(len(cuts), *t.shape[1:]))
    cut = torch.tensor(cuts, device=x.q.device)[:, None]
    future = torch.arange(length, device=x.q.device) > cut
    with torch.no_grad():
        out = run(rows)
        for factor in (3, 10, 30):
            moved = run(_replace(rows, future, factor)) - out
            yield _largest(moved, ~future, 2, allowed, f"{where}: outputs before keys x{factor}")
    yield from _gradients(run, rows, future, cut, where)


def _gradients(run: Callable[[Inputs], Tensor], rows: Inputs, future: Tensor, cut: Tensor, where: str) -> Findings:
    leaf_inputs, leaves = require_gradients(rows)
    out = run(leaf_inputs)
    last = out.gather(2, cut[:, None, :, None].expand(-1, out.shape[1], -1, out.shape[3]))
    loss = (last * random_weights(last.shape, last.dtype).to(last.device)).sum()
    for name, grad in zip(leaves, gradients(loss, list(leaves.values())), strict=True):
        yield _largest(grad, future, 1 if name == "hidden" else 2, 0.0, f"{where}: gradient to future {name}")


def _replace(x: Inputs, future: Tensor, factor: float) -> Inputs:
    """The inputs with all tokens of the mask (B, T) drawn anew, keys `factor` times as large."""
    generator = torch.Generator().manual_seed(7)

    def fresh(t: Tensor, dim: int) -> Tensor:
        new = torch.randn(t.shape[1:], generator=generator, dtype=torch.float64) * (factor if t is x.k else 1)
        return torch.where(_along(future, dim), new.to(t), t)

    return x.map(fresh)


def _along(mask: Tensor, dim: int) -> Tensor:
    """(B, T) -> broadcast against tensors whose time dimension is 1 or 2."""
    return mask[:, :, None] if dim == 1 else mask[:, None, :, None]


def _largest(t: Tensor, mask: Tensor, dim: int, allowed: float, where: str) -> Finding:
    worst = t.abs().nan_to_num(nan=float("inf")).masked_fill(~_along(mask, dim), 0).max()
    return Finding(float(worst), allowed, where)


def with_state(mechanism: Mechanism) -> Callable[[Inputs], Tensor]:
    """Its output for a whole sequence, as a prefill and the training on long blocks compute it."""
    return lambda x: mechanism(x)[0]


def without_state(mechanism: Mechanism) -> Callable[[Inputs], Tensor]:
    """The same as training on short blocks computes it."""
    return lambda x: mechanism(x, keeps_state=False)[0]


def ways(mechanism: Mechanism) -> dict[str, Callable[[Inputs], Tensor]]:
    """Its ways to compute a whole sequence, by a word for messages: one, where it has no form without a state."""
    cls = type(mechanism)
    alike = cls.parallel is Mechanism.parallel and cls.forward is Mechanism.forward
    return {"": with_state(mechanism)} | ({} if alike else {" without a state": without_state(mechanism)})


def leak(mechanism: Mechanism, length: int = 129) -> str | None:
    """A quick causality check of a mechanism, with and without a state, on its own geometry, device and precision.

    Works on a copy with noise on every parameter, so the mechanism and torch's random state are left as they were.
    Returns: None where no future token reaches an earlier output, else one line that says which and by how much.
    """
    g, like = mechanism.geometry, next(mechanism.parameters(), torch.zeros(()))
    shapes = ((1, g.heads, length, g.head_dim), *[(1, g.kv_heads, length, g.head_dim)] * 2, (1, length, g.hidden))
    generator = torch.Generator().manual_seed(0)
    q, k, v, hidden = (torch.randn(shape, generator=generator).to(like) for shape in shapes)
    cuts = [*range(0, length - 1, 21), length - 2]
    noisy = randomise(copy.deepcopy(mechanism)).eval()
    for run in ways(noisy).values():
        for finding in future_effects(run, Inputs(q, k, v, hidden), cuts, f"{length} tokens", 1e-3):
            if not finding.passed:
                return f"mechanism '{mechanism.kind}' leaks the future: {finding.where} by {finding.deviation:.1e}"
    return None
