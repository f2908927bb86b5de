"""Decoding state of swapped layers, as a transformers Cache: one StateLayer per attention layer."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers.cache_utils import Cache, CacheLayerMixin

from attnopt.mechanisms.base import Rows, State, measured_bytes, select_rows


class StateLayer(CacheLayerMixin):
    """Holds a mechanism's state and counts tokens; keys and values pass through `update` untouched."""

    is_compileable = False

    def __init__(self) -> None:
        super().__init__()
        self.state: State = None
        self.seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.is_initialized = True
        self.seen += key_states.shape[-2]
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1

    def reset(self) -> None:
        self.state, self.seen = None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.state is not None:
            self.state = select_rows(self.state, beam_idx)

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.state is not None:
            batch = _batch_size(self.state)
            self.state = select_rows(self.state, torch.arange(batch).repeat_interleave(repeats))

    def crop(self, max_length: int) -> None:
        raise NotImplementedError("a mechanism's state cannot be cropped: assisted decoding is not possible with it")

    def offload(self) -> None:
        raise NotImplementedError("a mechanism's state is not offloaded: use the default cache")


class StateCache(Cache):
    """A fresh decoding state for every layer of a swapped model."""

    def __init__(self, layers: int):
        super().__init__(layers=[StateLayer() for _ in range(layers)])

    def state_bytes(self) -> int:
        """Bytes held by the states' tensors."""
        return sum(measured_bytes(layer.state) for layer in self.layers if isinstance(layer, StateLayer))


def _batch_size(state: State) -> int:
    if isinstance(state, Rows):
        return len(state.rows)
    return next(t.shape[0] for t in tree_leaves(state) if isinstance(t, Tensor))
