"""A synthetic record of a search, with planted truths: mixes come to 1.5 times their sum, the searched one is ahead."""

import numpy as np

from attnopt.records.base import Environment
from attnopt.records.search import HeldOutRow, MixRow, RankRow, ScoreRow, SearchRecord, Way

NAMES = ["softmax", "window", "based"]
SINGLE = np.array([[0.0, 0.2, 0.1], [0.0, 0.02, 0.05], [0.0, 0.03, 0.02], [0.0, 0.04, 0.08]])
BYTES = [8192, 1024, 1024]
GAP = 1.5
RANKS: dict = {
    ("replaced", "kl"): 0.98,
    ("replaced", "recall"): 0.93,
    ("replaced", "total"): 0.94,
    ("restored", "kl"): 0.71,
    ("restored", "recall"): 0.6,
    ("corrected", "total"): None,
}
MIXES: dict[Way, list[int]] = {
    "searched": [2, 1, 2, 1],
    "one": [1, 1, 1, 1],
    "uniform": [1, 2, 1, 2],
    "greedy": [2, 1, 2, 1],
}
"""Of the smaller budget; the larger one has softmax in layer 0."""


def search_record(environment: Environment) -> SearchRecord:
    rng = np.random.default_rng(0)
    drawn = [("random", list(mix)) for mix in rng.integers(1, 3, (8, 4)).tolist()]
    every = [(budget, way, _for(budget, mix)) for budget in (0.125, 0.5) for way, mix in [*MIXES.items(), *drawn]]
    return SearchRecord(
        key="k",
        environment=environment,
        variants=NAMES,
        length=1024,
        softmax_bytes=4 * BYTES[0],
        budgets=[0.125, 0.5],
        decode=[],
        prefill=[],
        score="replaced",
        recall_weight=1.0,
        scores=[_score(layer, name) for name in range(3) for layer in range(4)],
        mixes=[_mix(budget, way, mix) for budget, way, mix in every],
        held_out=[_held_out(budget, way, mix) for budget, way, mix in every if way != "random"],
        spearman=[RankRow(sums=s, of=of, value=v) for (s, of), v in RANKS.items()],
        gap=GAP,
        seconds=9.0,
    )


def _for(budget: float, mix: list[int]) -> list[int]:
    return mix if budget < 0.5 else [0, *mix[1:]]


def _sum(mix: list[int]) -> float:
    return float(sum(SINGLE[layer, name] for layer, name in enumerate(mix)))


def _score(layer: int, name: int) -> ScoreRow:
    kl = float(SINGLE[layer, name])
    return ScoreRow(
        layer=layer,
        variant=NAMES[name],
        kind=NAMES[name],
        bytes=BYTES[name],
        parameters=100 * (name == 2),
        kl=kl / 2,
        recall=kl / 2,
        restored_kl=kl,
        restored_recall=kl,
    )


def _about(budget: float, way: Way, mix: list[int]) -> dict:
    layers = [NAMES[name] for name in mix]
    return {"way": way, "budget": budget, "layers": layers, "bytes": sum(BYTES[name] for name in mix)}


def _mix(budget: float, way: Way, mix: list[int]) -> MixRow:
    one = _sum(mix)
    return MixRow(
        **_about(budget, way, mix),
        replaced=one,
        restored=2 * one,
        corrected=GAP * one,
        kl=GAP * one / 2,
        recall=GAP * one / 2,
        total=GAP * one,
    )


def _held_out(budget: float, way: Way, mix: list[int]) -> HeldOutRow:
    kl, best = GAP * _sum(mix) / 2, GAP * _sum(_for(budget, MIXES["searched"])) / 2
    more = {"more_kl": kl - best, "more_kl_se": 0.002, "more_recall": kl - best, "more_recall_se": 0.5}
    none = dict.fromkeys(more)
    about = _about(budget, way, mix)
    return HeldOutRow(**about, kl=kl, kl_se=0.01, recall=kl, recall_se=0.02, **(none if way == "searched" else more))
