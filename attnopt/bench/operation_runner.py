"""One layer's attention alone at work, on random q, k and v."""

from typing import Any

import torch
from torch import Tensor

from attnopt.bench.params import Phase
from attnopt.bench.subjects import Setting, Work, weight_bytes
from attnopt.mechanisms.base import Geometry, Inputs, State, measured_bytes


class OperationRunner:
    """A mechanism on random inputs; any module with the signature (Inputs, state) -> (out, state) will do."""

    def __init__(self, module: Any, geometry: Geometry, setting: Setting):
        self.module = module.to(setting.device, setting.dtype).eval()
        self.geometry = geometry
        self.setting = setting

    def work(self, phase: Phase, length: int) -> Work:
        if phase == "train":
            x = self.inputs(length, grad=True)
            leaves = [x.q, x.k, x.v, *(p for p in self.module.parameters() if p.requires_grad)]
            return Work(lambda _: self._train(x, leaves))
        if phase == "prefill":
            x = self.inputs(length)
            return Work(lambda _: self._forward(x))
        new = [self.inputs(1) for _ in range(self.setting.decode_tokens)]
        return Work(lambda box: self._decode(new, box), lambda: [self._forward(self.inputs(length))], list, len(new))

    def inputs(self, length: int, grad: bool = False) -> Inputs:
        g, batch = self.geometry, self.setting.batch

        def random(*shape: int, grad: bool = False) -> Tensor:
            return torch.randn(shape, device=self.setting.device, dtype=self.setting.dtype, requires_grad=grad)

        q, k, v = (random(batch, h, length, g.head_dim, grad=grad) for h in (g.heads, g.kv_heads, g.kv_heads))
        return Inputs(q, k, v, random(batch, length, g.hidden))

    @torch.no_grad()
    def _forward(self, x: Inputs, state: State = None) -> State:
        return self.module(x, state)[1]

    def _decode(self, tokens: list[Inputs], box: list[State]) -> State:
        """Takes the state out of its box, so that it is released once it is replaced, as in a decoding loop."""
        state = box.pop()
        for x in tokens:
            state = self._forward(x, state)
        return state

    def _train(self, x: Inputs, leaves: list[Tensor]) -> Any:
        out, _ = self.module(x, keeps_state=False)
        return torch.autograd.grad(out, leaves, out.detach(), allow_unused=True) if out.requires_grad else None

    def state_bytes(self, left: State) -> int:
        return measured_bytes(left)

    def declared_bytes(self, length: int) -> int:
        return self.module.state_bytes(self.setting.batch, length, self.setting.dtype)

    def weight_bytes(self) -> int:
        return weight_bytes(self.module)

    def is_synthetic(self, phase: Phase, length: int) -> bool:
        return False
