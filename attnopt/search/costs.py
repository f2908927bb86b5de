"""What a candidate costs in a layer: bytes of state, and time, which are measured here and now."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from attnopt.bench.clock import Limits, interleave, quartiles, seconds
from attnopt.bench.model_runner import ModelRunner
from attnopt.bench.work import Setting
from attnopt.mechanisms.shared.sizing import softmax_bytes
from attnopt.records.search import Cost
from attnopt.search.mixable import Mix, Mixable
from attnopt.search.solve import cost_of

TOKENS, LIMITS = 8, Limits(5, 1.0, 60.0)
"""Decoding steps of a sample; rounds, and seconds of them."""


@dataclass(frozen=True)
class Costs:
    """Of one sort: bytes of state, or nanoseconds of a decoding step or a prefill.

    Attributes:
        each: (layers, candidates) whole numbers. softmax: of the whole model with softmax.
    """

    sort: Cost
    each: np.ndarray
    softmax: int

    def allowed(self, share: float) -> int:
        """What a share of softmax's is."""
        return int(share * self.softmax)


def state_costs(mixable: Mixable, ids: torch.Tensor) -> Costs:
    """Bytes of state after the tokens ids (1, T)."""
    geometries = [mixable.mechanism(layer, 0).geometry for layer in range(mixable.depth)]
    whole = sum(softmax_bytes(geometry, ids.shape[1], mixable.model.dtype) for geometry in geometries)
    return Costs("state", mixable.state_bytes(ids), whole)


def time_costs(mixable: Mixable, sort: Cost, length: int) -> Costs:
    """Nanoseconds: of each candidate an equal share of the model that has it in every layer."""
    took = nanoseconds(mixable, [mixable.uniform(c) for c in range(len(mixable.names))], sort, length)
    each = np.tile(np.round(took / mixable.depth).astype(int), (mixable.depth, 1))
    return Costs(sort, each, int(cost_of(mixable.uniform(0), each)))


def nanoseconds(mixable: Mixable, mixes: list[Mix], sort: Cost, length: int) -> np.ndarray:
    """(mixes,) medians over rounds, in each of which all take turns: of a prefill of so many tokens, of a step after
    almost as many."""
    device = mixable.model.device
    setting = Setting(1, TOKENS, mixable.model.dtype, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if sort == "decode":
            work = ModelRunner(mixable.model, setting).work("decode", length - TOKENS)
        else:
            work = ModelRunner(mixable.model, setting).work("prefill", length)
    contexts = [work.context() for mix in mixes if mixable.mixed(mix)]

    def sample(mix: Mix, context: Any) -> float:
        mixable.mixed(mix)
        return seconds(work.run, work.copy(context), device.type == "cuda") / work.tokens

    samplers = {str(i): partial(sample, *pair) for i, pair in enumerate(zip(mixes, contexts, strict=True))}
    taken = interleave(samplers, LIMITS)
    return 1e9 * np.array([quartiles(one).median for one in taken.values()])
