"""The map from final hidden states to logits: hidden @ W_head is the exact dense distribution, at C numbers a token."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnopt.core.errors import UserError
from attnopt.teacher.positions import placed


@dataclass(frozen=True)
class Head:
    """The map from final hidden states to logits: scale * hidden @ weight^T + bias."""

    weight: Tensor
    bias: Tensor | None
    scale: float

    def __call__(self, hidden: Tensor) -> Tensor:
        """(..., C) to (..., V), in the weight's precision."""
        hidden = hidden.to(self.weight.dtype)
        return nn.functional.linear(hidden * self.scale if self.scale != 1 else hidden, self.weight, self.bias)

    def to(self, dtype: torch.dtype) -> "Head":
        return Head(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype), self.scale)


def head_of(model: Any) -> Head:
    """The model's head. Raises UserError where logits are more than a linear map of the hidden states."""
    module = model.get_output_embeddings()
    config = model.config
    scale = float(getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1))
    head = Head(module.weight, getattr(module, "bias", None), scale)
    with torch.no_grad():
        ids = torch.arange(4, device=model.device)[None]
        logits = model(input_ids=ids, use_cache=False).logits.float()
        if not torch.allclose(head(hidden_states(model, ids)).float(), logits, rtol=1e-2, atol=1e-2):
            raise UserError(f"{type(model).__name__} cannot be distilled: its logits are no linear map of its output")
    return head


def hidden_states(model: Any, ids: Tensor, positions: Tensor | None = None) -> Tensor:
    """(B, T) token ids, and where they stand unless at 0, 1, 2, ..., to the final hidden states (B, T, C)."""
    return model.base_model(input_ids=ids, use_cache=False, **placed(positions)).last_hidden_state
