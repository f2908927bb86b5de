"""Mixture of attention experts: several mechanisms in one layer, weighed per token and head by a router.

    out_th = sum_e w_the expert_e(q, k, v)_th       w_th = softmax over e of  r_eh . x_t + b_eh,  r_1 = b_1 = 0

x_t is the layer's input. In use only the k largest weights of a token and head stand, and they sum to 1 again.

Source: Shazeer et al. 2017 for the router and the few experts that are read, Fedus et al. 2022 (arXiv:2101.03961) for
the load term, load_weight E sum_e f_e P_e of each layer and step: f_e is the share of tokens and heads whose largest
weight is e's, P_e the mean of its weights. Approximated: what the experts approximate. Start: every expert is fitted as
it would be alone, and the biases give `start` of the weight, and so in use all of it, to the one whose output on the
teacher's inputs is closest to softmax's.

A token is read through the experts that its own input chooses, and written to all of them: whom a later token will
choose cannot be known when a key comes. So the state is the sum of the experts' states, whatever is chosen, and every
expert works on every token. What routing saves is the reading, and only of an expert that no token and head of a call
has chosen: it then takes the tokens in (`Mechanism.absorb`), which for softmax and windows is next to nothing and for
others as much as ever. That happens in decoding, with few sequences, and with `per_head` off; a prefill reads them all.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from attnopt.mechanisms.base import Geometry, Inputs, MechanismOptions, State
from attnopt.mechanisms.shared.composite import Composite, Part
from attnopt.mechanisms.shared.extra_loss import add_loss, is_training
from attnopt.ops.softmax.causal import causal_attention
from attnopt.ops.tensors import wide

SEQUENCES = 4
"""Of the fit's, on which the best single expert is found."""


class Mixture(Composite):
    source = "https://arxiv.org/abs/1701.06538"
    paper = "Shazeer et al. 2017"
    growth = "window"
    cost = "E C + sum of the experts'"

    class Options(MechanismOptions):
        experts: Annotated[tuple[Part, ...], Field(min_length=2)] = (Part(kind="window"), Part(kind="hedgehog"))
        """Kinds, or {kind: ..., options: {...}}; a budget of state is shared equally among them."""
        top: Annotated[int, Field(ge=1)] | None = 1
        """k: experts that a token and head reads in use; null: all, with their weights."""
        per_head: bool = True
        """Whether each head of a token chooses for itself; false: all choose alike."""
        training: Literal["soft", "straight"] = "soft"
        """Which weights training sees: all of them, or those of use with the gradient of all."""
        load_weight: Annotated[float, Field(ge=0)] = 0.001
        """Of the load term in the loss, one for each layer."""
        start: Annotated[float, Field(gt=0, lt=1)] = 0.9
        """The weight of the best single expert before training."""

        @model_validator(mode="after")
        def _fewer_than_all(self) -> "Mixture.Options":
            if self.top is not None and self.top > len(self.experts):
                raise ValueError(f"top: {self.top} of {len(self.experts)} experts")
            if self.start <= 1 / len(self.experts):
                raise ValueError(f"start: {self.start} is no more than an equal share of {len(self.experts)} experts")
            return self

    options: Options

    def __init__(self, geometry: Geometry, options: Options):
        super().__init__(geometry, options)
        self.take([part.build(geometry) for part in options.experts])
        heads, others = geometry.heads if options.per_head else 1, len(options.experts) - 1
        self.weight = nn.Parameter(torch.zeros(others, heads, geometry.hidden))
        self.bias = nn.Parameter(torch.zeros(others, heads))
        self._prefer(0)

    @torch.no_grad()
    def _prefer(self, best: int) -> None:
        """Set the biases to give `start` of the weight to one expert and equal parts of the rest to the others."""
        odds = math.log(self.options.start * (len(self.parts) - 1) / (1 - self.options.start))
        self.bias.fill_(0 if best else -odds)
        if best:
            self.bias[best - 1] = odds

    def soft(self, x: Inputs) -> Tensor:
        """The router's weights (B, H, T, E), or (B, 1, T, E) where heads choose alike; at least float32.

        Raises: ValueError where there are no hidden states.
        """
        if x.hidden is None:
            raise ValueError("mixture needs the layer's hidden states for its router, there are none")
        hidden, weight, bias = wide(x.hidden, self.weight, self.bias)
        logits = torch.einsum("btc,ehc->bhte", hidden, weight.to(hidden)) + bias.to(hidden).T[:, None]
        return torch.cat([torch.zeros_like(logits[..., :1]), logits], -1).softmax(-1)

    def routed(self, x: Inputs) -> Tensor:
        """The weights that the experts are read with, shaped as those of `soft`; in training it adds the load term."""
        soft, o = self.soft(x), self.options
        if is_training() and o.load_weight:
            add_loss(o.load_weight * load(soft))
        if o.top is None or (is_training() and o.training == "soft"):
            return soft
        hard = largest(soft, o.top)
        return hard.detach() + soft - soft.detach() if is_training() else hard

    def extend(self, x: Inputs, state: tuple[State, ...] | None = None) -> tuple[Tensor, State]:
        weights = self.routed(x)
        read = self._read(weights)
        outs, after = [], []
        for part, is_read, before in zip(self.parts, read, state or (None,) * len(self.parts), strict=True):
            out, kept = part.extend(x, before) if is_read else (None, part.absorb(x, before))
            outs.append(out)
            after.append(kept)
        return _mixed(weights, outs).to(x.q.dtype), tuple(after)

    def parallel(self, x: Inputs) -> Tensor:
        weights = self.routed(x)
        read = self._read(weights)
        outs = [p(x, keeps_state=False)[0] if is_read else None for p, is_read in zip(self.parts, read, strict=True)]
        return _mixed(weights, outs).to(x.q.dtype)

    def _read(self, weights: Tensor) -> list[bool]:
        """Which experts some token and head reads: all in training, whose weights all have a gradient."""
        if self.options.top is None or is_training():
            return [True] * len(self.parts)
        return (weights > 0).flatten(0, 2).any(0).tolist()

    def absorb(self, x: Inputs, state: tuple[State, ...] | None = None) -> State:
        before = state or (None,) * len(self.parts)
        return tuple(part.absorb(x, own) for part, own in zip(self.parts, before, strict=True))

    def reference(self, x: Inputs) -> Tensor:
        assert x.hidden is not None
        each, outs = [part.reference(x) for part in self.parts], []
        count = self.options.top or len(self.parts)
        for t in range(x.q.shape[2]):
            heads = []
            for h in range(x.q.shape[1]):
                own = h if self.options.per_head else 0
                logits = x.hidden[:, t] @ self.weight[:, own].mT + self.bias[:, own]
                weights = torch.cat([torch.zeros_like(logits[:, :1]), logits], 1).exp()
                rank = weights.argsort(dim=1, descending=True, stable=True).argsort(1)
                weights = weights * (rank < count)
                weights = weights / weights.sum(1, keepdim=True)
                heads.append(sum(weights[:, e, None] * each[e][:, h, t] for e in range(len(each))))
            outs.append(torch.stack(heads, 1))
        return torch.stack(outs, 2)

    def state_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        return sum(p.state_bytes(batch, length, dtype) for p in self.parts)

    @classmethod
    def sized(
        cls, geometry: Geometry, options: Options, allowed: int, length: int, dtype: torch.dtype
    ) -> MechanismOptions:
        """As `Mechanism.sized`: each expert in turn gets an equal part of what those before it left."""
        left, experts = allowed, []
        for i, part in enumerate(options.experts):
            sized = part.sized(geometry, left // (len(options.experts) - i), length, dtype)
            experts.append(sized)
            left -= sized.state_bytes(geometry, length, dtype)
            if left < 0:
                raise ValueError(f"experts: {sized.kind} and those before it hold {-left} bytes a layer too many")
        return options.model_copy(update={"experts": tuple(experts)})

    @torch.no_grad()
    def fit(self, x: Inputs) -> None:
        for part in self.parts:
            part.fit(x)
        some = x.map(lambda t, _: t[:SEQUENCES])
        theirs = causal_attention(some.q, some.k, some.v, self.geometry.scaling)
        errors = [float((p(some, keeps_state=False)[0] - theirs).square().sum()) for p in self.parts]
        self._prefer(min(range(len(errors)), key=errors.__getitem__))

    @classmethod
    def limit(cls, length: int) -> Options:
        return cls.Options(experts=(Part(kind="softmax"), Part(kind="window", options={"window": length})))

    @classmethod
    def conformance_options(cls) -> dict[str, Options]:
        window, hedgehog = (Part(kind=kind, options={"window": 8}) for kind in ("window", "hedgehog"))
        three = (Part(kind="softmax"), window, Part(kind="retention", options={"window": 4}))
        return {
            "default": cls.Options(),
            "top 2 of 3": cls.Options(experts=three, top=2),
            "soft": cls.Options(experts=(hedgehog, Part(kind="none")), top=None, start=0.6),
            "heads alike": cls.Options(experts=(window, hedgehog), per_head=False, start=0.6),
        }


def largest(weights: Tensor, count: int) -> Tensor:
    """The `count` largest weights of each row (..., E), of equal ones the first, summing to 1; the others zero."""
    chosen = weights.argsort(dim=-1, descending=True, stable=True)[..., :count]
    kept = torch.zeros_like(weights).scatter(-1, chosen, weights.gather(-1, chosen))
    return kept / kept.sum(-1, keepdim=True)


def load(weights: Tensor) -> Tensor:
    """E sum_e f_e P_e of soft weights (B, H, T, E): 1 where all experts are read alike, E where one is read alone."""
    first = torch.nn.functional.one_hot(weights.argmax(-1), weights.shape[-1]).to(weights)
    return weights.shape[-1] * (first.mean((0, 1, 2)) * weights.mean((0, 1, 2))).sum()


def _mixed(weights: Tensor, outs: list[Tensor | None]) -> Tensor:
    """sum_e w_e out_e of the outputs (B, H, T, D) that there are."""
    first, *others = (weights[..., e, None] * out for e, out in enumerate(outs) if out is not None)
    return sum(others, first)
