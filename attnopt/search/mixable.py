"""A model whose attention layers are exchanged for those of the library: every mix of them at no cost."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnopt.mechanisms.base import Mechanism, measured_bytes
from attnopt.student.attach import attach
from attnopt.student.layers import attention_layers
from attnopt.student.library import LibraryStudent
from attnopt.student.swap import Swap

SOFTMAX = "softmax"
"""The teacher's own layer among the candidates."""
Mix = Sequence[int]
"""For each layer, which of the candidates stands there."""


class Mixable:
    """The teacher and its library as one model.

        mixable = Mixable(teacher, {"window": read_library(Path("library/window/0"), teacher)})
        mixable.mixed([1, 0, 1])     # window's layers 0 and 2 around the teacher's layer 1

    Args:
        library: students by variant.

    Attributes:
        names: of the candidates: SOFTMAX first, then the library's.
        depth: how many layers there are. places: the attention layers' names in the model.
    """

    def __init__(self, teacher: Any, library: Mapping[str, LibraryStudent]):
        self.model = attach(copy.deepcopy(teacher), Swap("softmax"))
        own = attention_layers(self.model)
        place = {id(module): name for name, module in self.model.named_modules()}
        self.places = [place[id(module)] for module in own]
        self._layers: list[list[nn.Module]] = [own, *(student.layers for student in library.values())]
        self.names = [SOFTMAX, *library]
        self.depth = len(own)

    def mixed(self, mix: Mix) -> Any:
        """The model with these layers, until it is asked for others."""
        for layer, candidate in enumerate(mix):
            self.model.set_submodule(self.places[layer], self._layers[candidate][layer])
        return self.model

    def uniform(self, candidate: int) -> list[int]:
        """The same candidate in every layer."""
        return [candidate] * self.depth

    def mechanism(self, layer: int, candidate: int) -> Mechanism:
        """What stands in a layer of a candidate."""
        found = self._layers[candidate][layer].mechanism
        assert isinstance(found, Mechanism)
        return found

    def parameters(self) -> np.ndarray:
        """(layers, candidates) parameters that a mechanism adds to its layer."""
        shape = (self.depth, len(self.names))
        counts = [sum(p.numel() for p in self.mechanism(*where).parameters()) for where in np.ndindex(shape)]
        return np.array(counts).reshape(shape)

    @torch.no_grad()
    def state_bytes(self, ids: Tensor) -> np.ndarray:
        """(layers, candidates) bytes that a layer's state is seen to hold after the tokens ids (1, T)."""
        found = []
        for candidate in range(len(self.names)):
            cache = self.mixed(self.uniform(candidate))(ids, use_cache=True, logits_to_keep=1).past_key_values
            found.append([measured_bytes(layer.state) for layer in cache.layers])
        return np.array(found).T
