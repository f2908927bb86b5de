"""Mutants of the conformance suite: small mechanisms with one defect each, which the named check must find.

A mutant is killed only if the finding is the expected one, not an accident such as an exception.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnopt import conformance
from attnopt.mechanisms import Geometry, Inputs, Mechanism, gated_delta
from attnopt.mechanisms.gated_delta import GatedDelta
from attnopt.mechanisms.gla import GatedLinear
from attnopt.mechanisms.retention import Retention
from attnopt.mechanisms.softmax import Softmax, SoftmaxState
from attnopt.ops.growing import Tokens
from attnopt.ops.linear.decayed import decayed_attention
from attnopt.ops.tensors import repeat_heads, wide


class Linear(Mechanism):
    """Healthy: sum_s phi(q_t).phi(k_s) v_s / sum_s phi(q_t).phi(k_s), phi(x) = sigmoid(x W) + 0.1, by running sums."""

    source = "https://arxiv.org/abs/2006.16236"
    growth = "constant"

    def __init__(self, geometry, options):
        super().__init__(geometry, options)
        self.weight = nn.Parameter(torch.eye(geometry.head_dim))

    def features(self, x: Tensor) -> Tensor:
        return (x @ self.weight.to(x.dtype)).sigmoid() + 0.1

    def extend(self, x, state=None):
        q, k, v = wide(x.q, x.k, x.v)
        sums, mass = self.sums(self.features(k), v, state)
        out = self.read(self.features(q), repeat_heads(sums, q.shape[1]), repeat_heads(mass, q.shape[1]))
        return out.to(x.q.dtype), (sums[:, :, -1].clone(), mass[:, :, -1].clone())

    def sums(self, fk, v, state):
        """Running sums (B, G, T, F, D) and (B, G, T, F)."""
        sums, mass = (fk[..., :, None] * v[..., None, :]).cumsum(2), fk.cumsum(2)
        return (sums, mass) if state is None else (sums + state[0][:, :, None], mass + state[1][:, :, None])

    def read(self, fq, sums, mass):
        return torch.einsum("bhtf,bhtfd->bhtd", fq, sums) / torch.einsum("bhtf,bhtf->bht", fq, mass)[..., None]

    def reference(self, x):
        fq, fk, v = self.features(x.q), self.features(repeat_heads(x.k, x.q.shape[1])), repeat_heads(x.v, x.q.shape[1])
        rows = [torch.einsum("bhf,bhsf->bhs", fq[:, :, t], fk[:, :, : t + 1]) for t in range(x.q.shape[2])]
        weights = [row / row.sum(-1, keepdim=True) for row in rows]
        return torch.stack([torch.einsum("bhs,bhsd->bhd", w, v[:, :, : w.shape[-1]]) for w in weights], dim=2)

    def state_bytes(self, batch, length, dtype):
        g = self.geometry
        return batch * g.kv_heads * g.head_dim * (g.head_dim + 1) * max(dtype.itemsize, 4)


MUTANTS: dict[str, tuple[type[Mechanism], str, str]] = {}


def killed_by(check: str, finding: str):
    """Register a mutant with the check that must fail on it and a part of the finding."""

    def register(cls):
        MUTANTS[cls.__name__] = (cls, check, finding)
        return cls

    return register


def weights_of(x: Inputs, scaling: float, visible: Tensor) -> Tensor:
    """Softmax weights (B, H, T, T) over the visible (T, T)."""
    scores = x.q @ repeat_heads(x.k, x.q.shape[1]).transpose(2, 3) * scaling
    return scores.masked_fill(~visible, -torch.inf).softmax(-1)


@killed_by("causality", "outputs before keys")
class LeakyMaximum(Linear):
    """The stabiliser of the keys is a maximum over the sequence, and reaches the past through an epsilon."""

    def features(self, x):
        return (x - x.amax(dim=(2, 3), keepdim=True).detach()).exp() + 1e-4


@killed_by("causality", "outputs before keys")
class OpenBlockPooled(Softmax):
    """Values are replaced by means over blocks of 8, the block that is still open included."""

    def extend(self, x, state=None):
        blocks = [b.mean(2, keepdim=True).expand_as(b) for b in x.v.split(8, dim=2)]
        return super().extend(Inputs(x.q, x.k, torch.cat(blocks, dim=2)), state)


@killed_by("causality", "outputs before keys")
class Bidirectional(Softmax):
    """No causal mask."""

    def extend(self, x, state=None):
        _, state = super().extend(x, state)
        k, v = (t.tensor for t in state)
        return F.scaled_dot_product_attention(x.q, k, v, scale=self.geometry.scaling, enable_gqa=True), state


@killed_by("causality", "outputs before keys")
class GridOfTheOpenBlock(Softmax):
    """Keys are rounded to 16 levels between the extremes of their block of 8, which is still open."""

    def extend(self, x, state=None):
        return super().extend(Inputs(x.q, torch.cat([self.rounded(b) for b in x.k.split(8, dim=2)], 2), x.v), state)

    def rounded(self, block):
        low, high = block.amin(2, keepdim=True).detach(), block.amax(2, keepdim=True).detach()
        step = ((high - low) / 15).clamp(min=1e-9)
        return low + step * ((block - low) / step).round()


@killed_by("causality", "outputs before keys")
class EvictsByFutureScores(Softmax):
    """Half of the keys are left out: those that all queries together, the later ones too, look at least."""

    def extend(self, x, state=None):
        _, state = super().extend(x, state)
        k, v = (t.tensor for t in state)
        seen = torch.ones(x.q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - x.q.shape[2])
        got = weights_of(Inputs(x.q, k, v), self.geometry.scaling, seen).sum((1, 2))
        heavy = got >= got.median(1, keepdim=True).values
        seen = (seen & heavy[:, None]) | torch.eye(k.shape[2], dtype=torch.bool)[-x.q.shape[2] :]
        return weights_of(Inputs(x.q, k, v), self.geometry.scaling, seen[:, None]) @ repeat_heads(
            v, x.q.shape[1]
        ), state


@killed_by("causality", "outputs before keys")
class GateOfTheNextToken(GatedLinear):
    """A step decays as the token after it says."""

    def decays(self, hidden, like):
        return super().decays(torch.cat([hidden[:, 1:], hidden[:, -1:]], 1), like)


@killed_by("causality", "outputs before keys")
class ChoosesAmongTheFuture(Softmax):
    """Of the 8 tokens of the sequence that an indexer likes best it reads those that came, and itself."""

    def extend(self, x, state=None):
        _, state = super().extend(x, state)
        liked = x.hidden.sum(-1)
        best = liked >= liked.topk(min(8, liked.shape[1])).values[:, -1:]
        seen = torch.ones(*[liked.shape[1]] * 2, dtype=torch.bool).tril() & best[:, None]
        seen = seen | torch.eye(liked.shape[1], dtype=torch.bool)
        return weights_of(x, self.geometry.scaling, seen[:, None]) @ repeat_heads(x.v, x.q.shape[1]), state


@killed_by("causality", "gradient to future v")
class GradientOfTheFuture(Softmax):
    """The future adds nothing to an output, yet has a gradient."""

    def extend(self, x, state=None):
        out, state = super().extend(x, state)
        future = repeat_heads(x.v, x.q.shape[1]).mean(2, keepdim=True)
        return out + (future - future.detach()), state


@killed_by("prefix", "first")
class LengthInTheScale(Softmax):
    """Logits are scaled by the logarithm of the length of the call."""

    def extend(self, x, state=None):
        return super().extend(Inputs(x.q * x.q.new_tensor(x.q.shape[2] + 1.0).log(), x.k, x.v), state)


@killed_by("streaming", "in chunks")
class ForgottenState(Linear):
    def extend(self, x, state=None):
        return super().extend(x, None)


@killed_by("streaming", "the state given to a call")
class StateWrittenInPlace(Linear):
    def extend(self, x, state=None):
        out, after = super().extend(x, state)
        if state is None:
            return out, after
        with torch.no_grad():
            return out, tuple(old.copy_(new) for old, new in zip(state, after, strict=True))


@killed_by("streaming", "after its parent was continued elsewhere")
class SharedBuffer(Softmax):
    """Appends behind the state in one buffer for all continuations."""

    def extend(self, x, state=None):
        seen = 0 if state is None else state[0].shape[2]
        buffers = self.buffers_for(x) if state is None else [s._base for s in state]
        for buffer, new in zip(buffers, (x.k, x.v), strict=True):
            buffer[:, :, seen : seen + x.k.shape[2]] = new.detach()
        k, v = (buffer[:, :, : seen + x.k.shape[2]] for buffer in buffers)
        before = SoftmaxState(Tokens(k[:, :, :seen]), Tokens(v[:, :, :seen])) if seen else None
        out, _ = super().extend(x, before)
        return out, (k, v)

    def buffers_for(self, x):
        return [x.k.new_zeros(*x.k.shape[:2], 128, x.k.shape[3]) for _ in range(2)]


@killed_by("streaming", "in chunks")
class ReadsItsWholeMemory(Softmax):
    """Queries attend to all that there is memory for, with zeros where no token is yet."""

    def extend(self, x, state=None):
        _, state = super().extend(x, state)
        k, v = (t._memory.data for t in state)
        new, seen = x.q.shape[2], state.k.count
        visible = torch.ones(new, k.shape[2], dtype=torch.bool).tril(seen - new)
        visible[:, seen:] = True
        return weights_of(Inputs(x.q, k, v), self.geometry.scaling, visible) @ repeat_heads(v, x.q.shape[1]), state


@killed_by("streaming", "in chunks")
class IndexOfThisCallAlone(Softmax):
    """An indexer whose keys are in no state: a query reads the tokens that it likes of those that came with it."""

    def extend(self, x, state=None):
        _, state = super().extend(x, state)
        k, v = (t.tensor for t in state)
        new, seen = x.q.shape[2], k.shape[2]
        liked = torch.nn.functional.pad(x.hidden.sum(-1) > 0, (seen - new, 0))
        visible = torch.ones(new, seen, dtype=torch.bool).tril(seen - new) & liked[:, None]
        visible = visible | torch.eye(seen, dtype=torch.bool)[-new:]
        out = weights_of(Inputs(x.q, k, v), self.geometry.scaling, visible[:, None]) @ repeat_heads(v, x.q.shape[1])
        return out, state


@killed_by("ownership", "of continuations that take turns")
class OverwritesItsOlderOwner(Softmax):
    """Appends in place whoever else has appended to the same tokens."""

    def extend(self, x, state=None):
        for tokens in state or ():
            tokens._memory.taken = tokens.count
        return super().extend(x, state)


class Opaque:
    def __init__(self, state):
        self.state = state


@killed_by("ownership", "beams after choice")
class HiddenState(Softmax):
    """The state is an object that `select_rows` does not look into: beams that change places keep their old tokens."""

    def extend(self, x, state=None):
        out, after = super().extend(x, state and state[0].state)
        return out, (Opaque(after),)


@killed_by("padding", "padded tokens")
class IgnoredPadding(Softmax):
    def forward(self, x, state=None):
        return self.extend(x, state)


@killed_by("padding", "a row of a batch")
class RowsMixed(Linear):
    """The features are centred by a mean over the batch."""

    def features(self, x):
        return (x - x.mean(dim=(0, 2, 3), keepdim=True)).sigmoid() + 0.1


@killed_by("padding", "a permuted state")
class StateOfOtherRows(Linear):
    """The state holds its rows in the reverse order."""

    def extend(self, x, state=None):
        out, after = super().extend(x, None if state is None else tuple(s.flip(0) for s in state))
        return out, tuple(s.flip(0) for s in after)


@killed_by("limit", "against softmax")
class OwnScale(Softmax):
    """Scales by head_dim^-0.5 whatever the model says."""

    def extend(self, x, state=None):
        return super().extend(Inputs(x.q * (x.q.shape[-1] ** -0.5 / self.geometry.scaling), x.k, x.v), state)


@killed_by("limit", "against softmax")
class BlindToItself(Softmax):
    """A token sees those before it, but itself only where there is none."""

    def extend(self, x, state=None):
        _, state = super().extend(x, state)
        k, v = (t.tensor for t in state)
        new, seen = x.q.shape[2], k.shape[2]
        visible = torch.ones(new, seen, dtype=torch.bool).tril(seen - new - 1)
        visible[:, 0] = True
        weights = weights_of(Inputs(x.q, k, v), self.geometry.scaling, visible)
        return weights @ repeat_heads(v, x.q.shape[1]), state


@killed_by("ones", "length")
class DroppedDenominator(Linear):
    def read(self, fq, sums, mass):
        return torch.einsum("bhtf,bhtfd->bhtd", fq, sums)


@killed_by("ones", "length")
class EpsilonInTheDenominator(Linear):
    def read(self, fq, sums, mass):
        return super().read(fq, sums, mass + 1e-6)


@killed_by("reference", "gradient of k")
class DetachedState(Softmax):
    def extend(self, x, state=None):
        return super().extend(x, state and SoftmaxState(*(Tokens(t.tensor.detach()) for t in state)))


@killed_by("reference", "output")
class DecayOffByOne(Retention):
    """A token has decayed once when it is first read."""

    def recur(self, q, k, v, decay, written, sums):
        return super().recur(q, k * decay.exp(), v, decay, written, sums)


@killed_by("reference", "output")
class EraseBeforeTheRead(GatedDelta):
    """A query reads after the erase but before the write."""

    def recur(self, q, k, v, decay, written, sums):
        out, norm, sums = super().recur(q, k, v, decay, written, sums)
        met = F.normalize(q, dim=-1) * repeat_heads(F.normalize(k, dim=-1), q.shape[1])
        return out - met.sum(-1, keepdim=True) * repeat_heads(written * v, q.shape[1]), norm, sums


@killed_by("reference", "output")
class NoErase(GatedDelta):
    """Writes on top of what the state knows under a key."""

    def recur(self, q, k, v, decay, written, sums):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(gated_delta, "delta_attention", self.without_erase)
            return super().recur(q, k, v, decay, written, sums)

    def without_erase(self, q, k, v, decay, written, state):
        return decayed_attention(q, k, written * v, decay, state)


@killed_by("reference", "output")
class StrengthOfTheReader(GatedDelta):
    """A token is written with the strength of the one that is present."""

    def _far(self, x, k, v, written, sums):
        return super()._far(x, k, v, self.strength(x.hidden, x.k), sums)


@killed_by("reference", "gradient of q")
class WrongBackward(Softmax):
    """Right outputs, twice the gradient of the queries."""

    def extend(self, x, state=None):
        return super().extend(Inputs(2 * x.q - x.q.detach(), x.k, x.v), state)


@killed_by("reference", "output")
class ForgottenTail(Linear):
    """Tokens beyond the last whole block of 16 do not enter the sums."""

    def sums(self, fk, v, state):
        tail = torch.arange(fk.shape[2]) >= max(fk.shape[2] // 16 * 16, 1)
        return super().sums(fk.masked_fill(tail[:, None], 0), v, state)


@killed_by("numerics", "finite at norms x64")
class Overflow(Linear):
    """exp without a stabiliser."""

    def features(self, x):
        return x.exp()


@killed_by("numerics", "finite at norms x1")
class RowOfInfinities(Softmax):
    """The output of a row without visible keys is mended by nan_to_num; its gradient is not."""

    def extend(self, x, state=None):
        out, state = super().extend(x, state)
        empty = (x.q.sum(-1, keepdim=True) + x.q.new_tensor([-torch.inf, -torch.inf])).softmax(-1)
        return out + empty.nan_to_num().sum(-1, keepdim=True), state


@killed_by("numerics", "bf16 inputs against fp32")
class NarrowSums(Linear):
    """The running sums have the precision of the inputs."""

    def extend(self, x, state=None):
        out, after = super().extend(x, state)
        return out, tuple(s.to(x.k.dtype) for s in after)


@killed_by("determinism", "after saving and loading")
class UnsavedProjection(Linear):
    """Its random features are no buffer."""

    def __init__(self, geometry, options):
        super().__init__(geometry, options)
        self.projection = torch.randn(geometry.head_dim, geometry.head_dim).double()

    def features(self, x):
        return super().features(x @ self.projection.to(x.dtype))


@killed_by("determinism", "outputs of the same seed")
class RedrawnFeatures(Linear):
    def features(self, x):
        return super().features(x) + torch.rand_like(x)


@killed_by("determinism", "after another sequence")
class StateOnSelf(Linear):
    """Keeps the mass of earlier sequences."""

    kept = 0.0

    def sums(self, fk, v, state):
        sums, mass = super().sums(fk, v, state)
        self.kept += float(mass.detach().mean())
        return sums, mass + self.kept


@killed_by("determinism", "parameters and buffers of the same seed")
class UnseededStart(Linear):
    def __init__(self, geometry, options):
        super().__init__(geometry, options)
        self.weight.data += torch.randn(self.weight.shape, generator=self.entropy)

    entropy = torch.Generator().manual_seed(0)


@killed_by("grouped", "length")
class FlippedHeads(Softmax):
    """Query head h reads key/value head h mod G instead of h // (H / G)."""

    def extend(self, x, state=None):
        order = torch.arange(x.q.shape[1]).view(-1, x.k.shape[1]).t().flatten()
        out, state = super().extend(Inputs(x.q[:, order], x.k, x.v), state)
        return out[:, order.argsort()], state


@killed_by("memory", "bytes held")
class StateOfViews(Linear):
    """The state is a slice that keeps all running sums alive."""

    def extend(self, x, state=None):
        out, _ = super().extend(x, state)
        sums, mass = self.sums(self.features(x.k.float()), x.v.float(), state)
        return out, (sums[:, :, -1], mass[:, :, -1])


@killed_by("memory", "bytes held")
class HandsOverItsWholeMemory(Softmax):
    """The state is the memory with all its room, and a number that says how much is taken."""

    def extend(self, x, state=None):
        if state is not None:
            state = SoftmaxState(*(Tokens(t[:, :, : state[2]]) for t in state[:2]))
        out, after = super().extend(x, state)
        return out, (*(t._memory.data for t in after), after.k.count)


@killed_by("memory", "bytes held with what lies behind")
class TakesFourTimesTheMemory(Softmax):
    def extend(self, x, state=None):
        out, after = super().extend(x, state)
        return out, SoftmaxState(*(Tokens(t.tensor.repeat(1, 1, 4, 1)[:, :, : t.count]) for t in after))


@killed_by("memory", "constant state")
class GrowingState(Softmax):
    growth = "constant"


@killed_by("memory", "peak memory")
class SquareOfTheLength(Linear):
    """Builds all weights of a sequence."""

    def extend(self, x, state=None):
        out, state = super().extend(x, state)
        visible = torch.ones(x.q.shape[2], x.q.shape[2], dtype=torch.bool).tril()
        return out + 0 * weights_of(x, 1.0, visible).sum(-1, keepdim=True).to(out.dtype), state


@killed_by("parameters", "unused dead")
class DeadParameter(Linear):
    def __init__(self, geometry, options):
        super().__init__(geometry, options)
        self.unused = nn.Parameter(torch.zeros(3))


@killed_by("parameters", "bias dead")
class CancelledParameter(Softmax):
    """A bias on all keys alike, which softmax cancels but for rounding."""

    def __init__(self, geometry, options):
        super().__init__(geometry, options)
        self.bias = nn.Parameter(torch.zeros(geometry.head_dim))

    def extend(self, x, state=None):
        return super().extend(Inputs(x.q, x.k + self.bias.to(x.k.dtype), x.v), state)


@pytest.mark.parametrize("check", conformance.CHECKS)
def test_healthy_parent(check: str):
    (result,) = conformance.check(Linear, only=[check])
    assert result.passed is not False, result.detail


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_killed(name: str):
    cls, check, finding = MUTANTS[name]
    (result,) = conformance.check(cls, only=[check])
    assert result.passed is False
    assert finding in result.detail
    assert "Error" not in result.detail


def test_every_check_kills_a_mutant():
    assert {check for _, check, _ in MUTANTS.values()} == set(conformance.CHECKS)


@pytest.mark.parametrize("name", [name for name, (_, check, _) in MUTANTS.items() if check == "causality"])
def test_leaking_mutant_is_refused_before_training(name: str):
    geometry = Geometry(heads=4, kv_heads=4, head_dim=64, hidden=256, scaling=0.125)
    cls = MUTANTS[name][0]
    mechanism = cls(geometry, cls.Options())
    mechanism.kind = name
    assert f"'{name}' leaks the future" in conformance.leak(mechanism)
