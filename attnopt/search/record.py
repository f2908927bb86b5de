"""What a search found as a record, its mixes held against their rivals on text that the search never saw."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from attnopt.core.machine import environment
from attnopt.core.progress import progress_bar
from attnopt.records.base import Environment
from attnopt.records.search import Cost, HeldOutRow, MixRow, RankRow, ScoreRow, SearchRecord
from attnopt.search.costs import nanoseconds
from attnopt.search.probe import Measured, Probe
from attnopt.search.search import Budgeted, Search
from attnopt.search.solve import Found, cost_of
from attnopt.statistics import mean_and_error, spearman

APART = ("rescored", "random")
"""Ways whose mixes are measured on the valid split alone."""


def search_record(search: Search, test: Probe, key: str, began: float) -> SearchRecord:
    """Of a search that was run, its mixes and their rivals measured on the test split.

    Args:
        began: when, by `time.perf_counter`.
    """
    params, mixable = search.params, search.mixable
    shown = [one for one in search.found if one.way not in APART]
    mixes = list(dict.fromkeys(one.mix for one in shown))
    held = {mix: test.of(mixable.mixed(mix)) for mix in progress_bar(mixes, name="held out")}
    timed: dict[Cost, dict[Found, float]] = {
        sort: _timed(search, sort, shown) for sort in search.costs if sort != "state"
    }
    return SearchRecord(
        key=key,
        environment=Environment(**environment()),
        variants=mixable.names,
        length=params.length,
        softmax_bytes=search.costs["state"].softmax,
        budgets=params.budgets,
        decode=params.decode,
        prefill=params.prefill,
        score=params.score,
        recall_weight=params.recall_weight,
        scores=_score_rows(search),
        mixes=[_mix_row(search, one) for one in search.found],
        held_out=[_held_out_row(search, one, shown, held, timed) for one in shown],
        spearman=_ranks(search),
        gap=search.gap,
        seconds=round(time.perf_counter() - began, 2),
    )


def _timed(search: Search, sort: Cost, shown: list[Budgeted]) -> dict[Found, float]:
    """Of the mixes that are for a budget of time: what they took as a whole over softmax, in turns with it."""
    mixes = list(dict.fromkeys(one.mix for one in shown if one.budget.cost == sort))
    took = nanoseconds(search.mixable, [search.mixable.uniform(0), *mixes], sort, search.params.length)
    return dict(zip(mixes, (took[1:] / took[0]).tolist(), strict=True))


def _score_rows(search: Search) -> list[ScoreRow]:
    mixable, parameters = search.mixable, search.mixable.parameters()
    restored = search.restored
    return [
        ScoreRow(
            layer=layer,
            variant=name,
            kind=mixable.mechanism(layer, candidate).kind,
            bytes=_each(search, "state", layer, candidate),
            parameters=int(parameters[layer, candidate]),
            kl=float(search.single.kl[layer, candidate]),
            recall=float(search.single.recall[layer, candidate]),
            restored_kl=None if restored is None else float(restored.kl[layer, candidate]),
            restored_recall=None if restored is None else float(restored.recall[layer, candidate]),
            decode_ns=_each(search, "decode", layer, candidate),
            prefill_ns=_each(search, "prefill", layer, candidate),
        )
        for candidate, name in enumerate(mixable.names)
        for layer in range(mixable.depth)
    ]


def _each(search: Search, sort: Cost, layer: int, candidate: int) -> Any:
    """None where no budget is of that cost."""
    return int(search.costs[sort].each[layer, candidate]) if sort in search.costs else None


def _sums(search: Search, mix: Found) -> dict[str, float | None]:
    """What each sort of scores predicts of a mix."""
    weight, restored = search.params.recall_weight, search.restored
    return {
        "replaced": cost_of(mix, search.single.total(weight)),
        "restored": None if restored is None else cost_of(mix, restored.total(weight)),
        "corrected": cost_of(mix, search.corrected),
    }


def _about(search: Search, one: Budgeted) -> dict[str, Any]:
    return {
        "way": one.way,
        "cost": one.budget.cost,
        "budget": one.budget.share,
        "layers": [search.mixable.names[candidate] for candidate in one.mix],
        "bytes": int(cost_of(one.mix, search.costs["state"].each)),
    }


def _mix_row(search: Search, one: Budgeted) -> MixRow:
    found, total = search.measure(one.mix), search.total(one.mix)
    about: dict[str, Any] = _about(search, one) | _sums(search, one.mix)
    return MixRow(**about, kl=found.kl, recall=found.recall, total=total)


def _held_out_row(
    search: Search,
    one: Budgeted,
    shown: list[Budgeted],
    held: Mapping[Found, Measured],
    timed: Mapping[Cost, Mapping[Found, float]],
) -> HeldOutRow:
    best = next(other for other in shown if other.way == "searched" and other.budget == one.budget)
    found, base = held[one.mix], held[best.mix]
    kl, recall = _mean(found.pieces), _mean(found.lists)
    none = (None, None)
    more_kl = none if one is best else _mean(found.pieces - base.pieces)
    more_recall = none if one is best else _mean(found.lists - base.lists)
    costs = search.costs[one.budget.cost]
    clocked = one.budget.cost in timed
    return HeldOutRow(
        **_about(search, one),
        kl=kl[0],
        kl_se=kl[1],
        recall=recall[0],
        recall_se=recall[1],
        more_kl=more_kl[0],
        more_kl_se=more_kl[1],
        more_recall=more_recall[0],
        more_recall_se=more_recall[1],
        predicted=cost_of(one.mix, costs.each) / costs.softmax if clocked else None,
        measured=timed[one.budget.cost][one.mix] if clocked else None,
    )


def _mean(values: np.ndarray) -> tuple[float, float | None]:
    return mean_and_error(values[:, None])


def _ranks(search: Search) -> list[RankRow]:
    mixes = list(dict.fromkeys(one.mix for one in search.found if one.way == "random"))
    found, weight = [search.measure(mix) for mix in mixes], search.params.recall_weight
    of: dict[Any, list[float]] = {
        "kl": [one.kl for one in found],
        "recall": [one.recall for one in found],
        "total": [one.total(weight) for one in found],
    }
    sorts: list[tuple[Any, Any, np.ndarray]] = [("corrected", "total", search.corrected)]
    for name, single in (("replaced", search.single), ("restored", search.restored)):
        if single is None:
            continue
        sorts += [(name, "kl", single.kl), (name, "recall", single.recall), (name, "total", single.total(weight))]
    return [RankRow(sums=name, of=what, value=_rank(mixes, scores, of[what])) for name, what, scores in sorts]


def _rank(mixes: list[Found], scores: np.ndarray, values: list[float]) -> float | None:
    """Of sums and values; None where there are too few mixes, or all are alike."""
    if len(mixes) < 3:
        return None
    value = spearman(np.array([cost_of(mix, scores) for mix in mixes]), np.array(values))
    return None if np.isnan(value) else value
