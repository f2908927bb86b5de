"""The stage search: the library read, searched, and what was found held against its rivals on text it never saw."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from attnopt.core.device import resolve_device, token_ids
from attnopt.core.errors import UserError
from attnopt.core.machine import environment
from attnopt.core.paths import CORPUS
from attnopt.core.progress import progress_bar
from attnopt.corpus.blocks import read_documents
from attnopt.mechanisms.shared.sizing import softmax_bytes
from attnopt.records.base import Environment
from attnopt.records.search import HeldOutRow, MixRow, RankRow, ScoreRow, SearchRecord
from attnopt.search.mixable import Mixable
from attnopt.search.params import SearchParams
from attnopt.search.probe import Measured, draw_probe
from attnopt.search.search import Budgeted, Search
from attnopt.search.solve import Found, cost_of
from attnopt.statistics import mean_and_error, spearman
from attnopt.student.library import read_library
from attnopt.targets.dataset import load_dataset
from attnopt.teacher.params import TeacherParams

APART = ("rescored", "random")
"""Ways whose mixes are measured on the valid split alone."""


def search_library(library: Mapping[str, Path], teacher: TeacherParams, params: SearchParams, key: str) -> SearchRecord:
    """Search the students in these folders, by variant.

    Raises: UserError that names the key where a budget is below the smallest mix, or the text has not what is asked.
    """
    began = time.perf_counter()
    dataset, tokenizer = load_dataset(teacher)
    model = dataset.teacher.to(resolve_device(params.device))
    draw = partial(draw_probe, model, dataset.head, tokenizer)
    probe = draw(read_documents(CORPUS, "valid"), params, params.blocks, params.items)
    test = draw(read_documents(CORPUS, "test"), params, params.held_out, params.held_out)
    mixable = Mixable(model, {name: read_library(folder, model) for name, folder in library.items()})
    ids = token_ids(np.asarray(read_documents(CORPUS, "valid").tokens[: params.length])[None], model.device)
    costs = mixable.state_bytes(ids)
    geometries = [mixable.mechanism(layer, 0).geometry for layer in range(mixable.depth)]
    whole = sum(softmax_bytes(geometry, params.length, model.dtype) for geometry in geometries)
    search = Search(mixable, probe, costs, whole, params, progress_bar)
    try:
        search.run()
    except ValueError as error:
        raise UserError(f"search.{error}") from None
    shown = [one for one in search.found if one.way not in APART]
    mixes = list(dict.fromkeys(one.mix for one in shown))
    held = {mix: test.of(mixable.mixed(mix)) for mix in progress_bar(mixes, name="held out")}
    return SearchRecord(
        key=key,
        environment=Environment(**environment()),
        variants=mixable.names,
        length=params.length,
        softmax_bytes=whole,
        budgets=params.budgets,
        score=params.score,
        recall_weight=params.recall_weight,
        scores=_score_rows(search),
        mixes=[_mix_row(search, one) for one in search.found],
        held_out=[_held_out_row(search, one, shown, held) for one in shown],
        spearman=_ranks(search),
        gap=search.gap,
        seconds=round(time.perf_counter() - began, 2),
    )


def _score_rows(search: Search) -> list[ScoreRow]:
    mixable, parameters = search.mixable, search.mixable.parameters()
    return [
        ScoreRow(
            layer=layer,
            variant=name,
            kind=mixable.mechanism(layer, candidate).kind,
            bytes=int(search.costs[layer, candidate]),
            parameters=int(parameters[layer, candidate]),
            kl=float(search.single.kl[layer, candidate]),
            recall=float(search.single.recall[layer, candidate]),
            restored_kl=float(search.restored.kl[layer, candidate]),
            restored_recall=float(search.restored.recall[layer, candidate]),
        )
        for candidate, name in enumerate(mixable.names)
        for layer in range(mixable.depth)
    ]


def _sums(search: Search, mix: Found) -> dict[str, float]:
    """What each sort of scores predicts of a mix."""
    weight = search.params.recall_weight
    sorts = {"replaced": search.single.total(weight), "restored": search.restored.total(weight)}
    return {name: cost_of(mix, scores) for name, scores in (sorts | {"corrected": search.corrected}).items()}


def _mix_row(search: Search, one: Budgeted) -> MixRow:
    found = search.measure(one.mix)
    return MixRow(
        way=one.way,
        budget=one.budget,
        layers=_names(search, one.mix),
        bytes=int(cost_of(one.mix, search.costs)),
        **_sums(search, one.mix),
        kl=found.kl,
        recall=found.recall,
        total=search.total(one.mix),
    )


def _held_out_row(search: Search, one: Budgeted, shown: list[Budgeted], held: Mapping[Found, Measured]) -> HeldOutRow:
    best = next(other for other in shown if other.way == "searched" and other.budget == one.budget)
    found, base = held[one.mix], held[best.mix]
    kl, recall = _mean(found.pieces), _mean(found.lists)
    none = (None, None)
    more_kl = none if one is best else _mean(found.pieces - base.pieces)
    more_recall = none if one is best else _mean(found.lists - base.lists)
    return HeldOutRow(
        way=one.way,
        budget=one.budget,
        layers=_names(search, one.mix),
        bytes=int(cost_of(one.mix, search.costs)),
        kl=kl[0],
        kl_se=kl[1],
        recall=recall[0],
        recall_se=recall[1],
        more_kl=more_kl[0],
        more_kl_se=more_kl[1],
        more_recall=more_recall[0],
        more_recall_se=more_recall[1],
    )


def _mean(values: np.ndarray) -> tuple[float, float | None]:
    return mean_and_error(values[:, None])


def _names(search: Search, mix: Found) -> list[str]:
    return [search.mixable.names[candidate] for candidate in mix]


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
        sorts += [(name, "kl", single.kl), (name, "recall", single.recall), (name, "total", single.total(weight))]
    rows = []
    for name, what, scores in sorts:
        value = spearman(np.array([cost_of(mix, scores) for mix in mixes]), np.array(of[what]))
        rows.append(RankRow(sums=name, of=what, value=None if len(mixes) < 3 or np.isnan(value) else value))
    return rows
