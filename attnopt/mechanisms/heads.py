"""Heads of one layer that differ: a share of them, which look far back, keeps softmax, and the rest does not.

    out_h = kept(q_h, k_g, v_g)  where key/value head g of query head h is among the chosen,  rest(q_h, k_g, v_g) else

A key/value head goes with all of its query heads. Each kind is made for the heads that it has, and remembers those
alone, so that the state is the sum of both.

Source: Xiao et al. 2024 (DuoAttention), who give the few heads that retrieve from afar the whole context and the others
a window with sinks; they find them by training gates on passkeys. Approximated: what `rest` approximates. Start: the
fit chooses the key/value heads whose teacher looks farthest: those with the largest share of attention, mean over
queries and query heads, on tokens that are neither among the last w nor the first f, w and f those of `rest` where it
has a window and sinks. Then each kind is fitted to its own heads.
"""

from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from attnopt.mechanisms.base import Geometry, Inputs, MechanismOptions, State
from attnopt.mechanisms.shared.composite import Composite, Part
from attnopt.ops.tensors import repeat_heads, wide

SEQUENCES, QUERIES = 4, 256
"""What the choice of heads sees: so many sequences, and the last queries of each."""
WINDOW, SINKS = 16, 4
"""What counts as near where `rest` has no window and no sinks."""


class Heads(Composite):
    source = "https://arxiv.org/abs/2410.10819"
    paper = "Xiao et al. 2024"
    growth = "linear"
    cost = "share kept + (1 - share) rest"

    class Options(MechanismOptions):
        kept: Part = Part(kind="softmax")
        """What the chosen heads run: a kind, or {kind: ..., options: {...}}."""
        rest: Part = Part(kind="window")
        """And the others; a budget of state sizes it with what the chosen heads leave."""
        share: Annotated[float, Field(gt=0, le=1)] = 0.25
        """Of the layer's key/value heads, how many are chosen, to the nearest number and one at least."""
        heads: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
        """The key/value heads that are chosen, of every layer that it goes to; null: the fit chooses the `share`."""

        @field_validator("heads")
        @classmethod
        def _distinct(cls, heads: tuple[int, ...] | None) -> tuple[int, ...] | None:
            if heads and len(set(heads)) < len(heads):
                raise ValueError("a head comes twice")
            return heads

    chosen: Tensor
    """(G,) bool: which key/value heads run `kept`."""

    def __init__(self, geometry: Geometry, options: Options):
        super().__init__(geometry, options)
        self.count = chosen_count(geometry, options)
        listed = range(self.count) if options.heads is None else options.heads
        self.register_buffer("chosen", torch.tensor([g in listed for g in range(geometry.kv_heads)]))
        kinds = zip((options.kept, options.rest), part_geometries(geometry, self.count), strict=True)
        self.take([part.build(own) for part, own in kinds if own is not None])
        self.dense_weights = all(part.dense_weights for part in self.parts)
        exact = abs(options.share * geometry.kv_heads - self.count) < 1e-6
        self.alike_when_repeated = options.heads is None and exact

    def extend(self, x: Inputs, state: tuple[State, ...] | None = None) -> tuple[Tensor, State]:
        before = (None,) * len(self.parts) if state is None else state
        each = [p.extend(own, s) for p, own, s in zip(self.parts, self._split(x), before, strict=True)]
        return self._joined([out for out, _ in each]), tuple(after for _, after in each)

    def parallel(self, x: Inputs) -> Tensor:
        split = zip(self.parts, self._split(x), strict=True)
        return self._joined([p(own, keeps_state=False)[0] for p, own in split])

    def weights(self, x: Inputs) -> Tensor:
        return self._joined([p.weights(own) for p, own in zip(self.parts, self._split(x), strict=True)])

    def absorb(self, x: Inputs, state: tuple[State, ...] | None = None) -> State:
        before = (None,) * len(self.parts) if state is None else state
        return tuple(p.absorb(own, s) for p, own, s in zip(self.parts, self._split(x), before, strict=True))

    def _orders(self) -> tuple[Tensor, Tensor]:
        """Key/value heads (G,) and query heads (H,), the chosen first: no look at the numbers, which a GPU would wait
        for."""
        order = (~self.chosen).to(torch.uint8).argsort(stable=True)
        group = self.geometry.heads // self.geometry.kv_heads
        return order, (order[:, None] * group + torch.arange(group, device=order.device)).flatten()

    def _split(self, x: Inputs) -> list[Inputs]:
        """What each part is given: its own heads, and the layer's input."""
        (order, queries), group = self._orders(), self.geometry.heads // self.geometry.kv_heads
        sizes = [p.geometry.kv_heads for p in self.parts]
        q = x.q.index_select(1, queries).split([n * group for n in sizes], 1)
        k, v = (t.index_select(1, order).split(sizes, 1) for t in (x.k, x.v))
        return [Inputs(*own, x.hidden) for own in zip(q, k, v, strict=True)]

    def _joined(self, outs: list[Tensor]) -> Tensor:
        """The parts' outputs (B, H', ...) as one (B, H, ...), every head in its place."""
        return torch.cat(outs, 1).index_select(1, self._orders()[1].argsort())

    def reference(self, x: Inputs) -> Tensor:
        group = self.geometry.heads // self.geometry.kv_heads
        found: dict[int, Tensor] = {}
        for part, is_own in zip(self.parts, (True, False), strict=False):
            own = [g for g, chosen in enumerate(self.chosen.tolist()) if chosen == is_own]
            queries = [g * group + i for g in own for i in range(group)]
            out = part.reference(replace(x, q=x.q[:, queries], k=x.k[:, own], v=x.v[:, own]))
            found |= dict(zip(queries, out.unbind(1), strict=True))
        return torch.stack([found[h] for h in range(self.geometry.heads)], 1)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        return sum(p.state_bytes(batch, length, dtype) for p in self.parts)

    @classmethod
    def sized(
        cls, geometry: Geometry, options: Options, allowed: int, length: int, dtype: torch.dtype
    ) -> MechanismOptions:
        """As `Mechanism.sized`: the chosen heads' kind gets their share of the budget, or what it takes where it grows
        with every token, and the others what is left."""
        count = chosen_count(geometry, options)
        first, second = part_geometries(geometry, count)
        assert first is not None
        kept = options.kept.sized(first, allowed * count // geometry.kv_heads, length, dtype)
        taken = kept.state_bytes(first, length, dtype)
        chosen: dict[str, Any] = {"kept": kept}
        if second is not None:
            if taken > allowed:
                raise ValueError(
                    f"share: {count} of {geometry.kv_heads} heads with {kept.kind} hold {taken} bytes a layer at "
                    f"{length} tokens, and {allowed} are allowed"
                )
            chosen["rest"] = options.rest.sized(second, allowed - taken, length, dtype)
        return options.model_copy(update=chosen)

    @torch.no_grad()
    def fit(self, x: Inputs) -> None:
        if self.options.heads is None and self.count < self.geometry.kv_heads:
            best = self._far_mass(x).argsort(descending=True, stable=True)[: self.count]
            self.chosen.zero_()[best] = True
        for part, own in zip(self.parts, self._split(x), strict=True):
            part.fit(own)

    def _far_mass(self, x: Inputs) -> Tensor:
        """(G,) the share of the teacher's attention beyond the near tokens, mean over queries and query heads."""
        options = self.parts[1].options
        window, sinks = (getattr(options, name, default) for name, default in (("window", WINDOW), ("sinks", SINKS)))
        q, k = wide(x.q[:SEQUENCES, :, -QUERIES:], x.k[:SEQUENCES])
        key, query = (torch.arange(start, k.shape[2], device=k.device) for start in (0, k.shape[2] - q.shape[2]))
        distance = query[:, None] - key
        scores = q @ repeat_heads(k, q.shape[1]).mT * self.geometry.scaling
        weights = scores.masked_fill(distance < 0, -torch.inf).softmax(-1)
        far = (weights * ((distance >= window) & (key >= sinks))).sum(-1)
        return far.unflatten(1, (k.shape[1], -1)).mean((0, 2, 3))

    @classmethod
    def limit(cls, length: int) -> Options:
        return cls.Options(rest=Part(kind="window", options={"window": length}))

    @classmethod
    def conformance_options(cls) -> dict[str, Options]:
        hedgehog = Part(kind="hedgehog", options={"window": 8, "sinks": 3})
        return {
            "default": cls.Options(share=0.5),
            "listed": cls.Options(heads=(0,), kept=hedgehog, rest=Part(kind="none")),
            "hedgehog": cls.Options(share=0.5, rest=hedgehog),
            "all": cls.Options(share=1.0, kept=hedgehog),
        }


def chosen_count(geometry: Geometry, options: Heads.Options) -> int:
    """How many key/value heads are chosen. Raises ValueError where one is named that there is not."""
    if options.heads is None:
        return max(1, round(options.share * geometry.kv_heads))
    if (last := max(options.heads)) >= geometry.kv_heads:
        raise ValueError(f"heads: {last} does not exist, the layer has 0 to {geometry.kv_heads - 1}")
    return len(options.heads)


def part_geometries(geometry: Geometry, count: int) -> tuple[Geometry | None, Geometry | None]:
    """Of the chosen heads and of the others; None where there are none."""
    group = geometry.heads // geometry.kv_heads
    sizes = (count, geometry.kv_heads - count)
    made = [replace(geometry, heads=n * group, kv_heads=n) if n else None for n in sizes]
    return made[0], made[1]
