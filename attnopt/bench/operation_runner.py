"""One layer's attention alone at work, on random q, k and v."""

from typing import Any

import torch
from torch import Tensor

from attnopt.bench.work import Setting, Work, weight_bytes
from attnopt.mechanisms.base import Geometry, Inputs, State, measured_bytes
from attnopt.mechanisms.shared.compiled import compile_steps
from attnopt.mechanisms.shared.states import with_room
from attnopt.records.bench import Phase


class Handover:
    """A decoding state on its way into one run, which takes it out and so becomes its only owner.

    A decoding loop drops a state as soon as the next one has replaced it. Without this, whoever made the state for the
    run would keep it alive meanwhile, and the run's peak memory would be a state too high.
    """

    def __init__(self, state: State):
        self.state = state

    def copy(self) -> "Handover":
        """For another run, which begins in the midst of decoding: where a state grows in place, it has room to."""
        return Handover(with_room(self.state))

    def take(self) -> State:
        """The state, which is no longer held here."""
        state, self.state = self.state, None
        return state


class OperationRunner:
    """A mechanism on random inputs.

    Args:
        module: a mechanism, or any module with the signature (Inputs, state) -> (out, state); for `declared_bytes` it
            needs `state_bytes(batch, length, dtype)`, and for the phase train a keyword `keeps_state`.
        geometry: of the inputs.
    """

    def __init__(self, module: Any, geometry: Geometry, setting: Setting):
        self.module = module.to(setting.device, setting.dtype).eval()
        self.geometry = geometry
        self.setting = setting
        if setting.compiles:
            compile_steps([self.module])

    def work(self, phase: Phase, length: int) -> Work:
        if phase == "train":
            x = self.inputs(length, grad=True)
            leaves = [x.q, x.k, x.v, *(p for p in self.module.parameters() if p.requires_grad)]
            return Work(lambda _: self._train(x, leaves))
        if phase == "prefill":
            x = self.inputs(length)
            return Work(lambda _: self._forward(x))
        new = [self.inputs(1) for _ in range(self.setting.decode_tokens)]
        return Work(
            run=lambda context: self._decode(new, context),
            context=lambda: Handover(self._forward(self.inputs(length))),
            copy=Handover.copy,
            tokens=len(new),
        )

    def inputs(self, length: int, grad: bool = False) -> Inputs:
        """Random q (B, H, T, D), k and v (B, G, T, D) and hidden (B, T, C); with `grad`, q, k and v take gradients."""
        g, batch = self.geometry, self.setting.batch

        def random(*shape: int, grad: bool = False) -> Tensor:
            return torch.randn(shape, device=self.setting.device, dtype=self.setting.dtype, requires_grad=grad)

        q, k, v = (random(batch, h, length, g.head_dim, grad=grad) for h in (g.heads, g.kv_heads, g.kv_heads))
        return Inputs(q, k, v, random(batch, length, g.hidden))

    @torch.no_grad()
    def _forward(self, x: Inputs, state: State = None) -> State:
        return self.module(x, state)[1]

    def _decode(self, tokens: list[Inputs], context: Handover) -> State:
        state = context.take()
        for x in tokens:
            state = self._forward(x, state)
        return state

    def _train(self, x: Inputs, leaves: list[Tensor]) -> Any:
        out, _ = self.module(x, keeps_state=False)
        return torch.autograd.grad(out, leaves, out.detach(), allow_unused=True) if out.requires_grad else None

    def state_bytes(self, left: State | Handover) -> int:
        return measured_bytes(left.state if isinstance(left, Handover) else left)

    def declared_bytes(self, length: int) -> int:
        return self.module.state_bytes(self.setting.batch, length, self.setting.dtype)

    def weight_bytes(self) -> int:
        return weight_bytes(self.module)

    def is_synthetic(self, phase: Phase, length: int) -> bool:
        return False
