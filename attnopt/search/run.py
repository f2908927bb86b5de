"""The stage search: the library read, searched, and what was found held against its rivals on text it never saw."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from attnopt.core.checkpoint import Checkpoint, checkpoint_key
from attnopt.core.device import resolve_device, token_ids
from attnopt.core.errors import UserError
from attnopt.core.machine import environment
from attnopt.core.paths import CORPUS
from attnopt.core.progress import progress_bar
from attnopt.corpus.blocks import read_documents
from attnopt.records.search import Cost, SearchRecord
from attnopt.search.costs import Costs, state_costs, time_costs
from attnopt.search.kept import KeptMeasures
from attnopt.search.mixable import Mixable
from attnopt.search.params import SearchParams
from attnopt.search.probe import draw_probe
from attnopt.search.record import search_record
from attnopt.search.search import Search, budgets_of
from attnopt.student.library import read_library
from attnopt.targets.dataset import load_dataset
from attnopt.teacher.params import TeacherParams


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
    costs = _costs(mixable, params)
    checkpoint = Checkpoint(checkpoint_key(key, model.device.type, environment()["cpu"]))
    with checkpoint.locked():
        search = Search(mixable, probe, costs, params, progress_bar, KeptMeasures(checkpoint))
        try:
            search.run()
        except ValueError as error:
            raise UserError(f"search.{error}") from None
        record = search_record(search, test, key, began)
        checkpoint.remove()
    return record


def _costs(mixable: Mixable, params: SearchParams) -> dict[Cost, Costs]:
    ids = token_ids(np.asarray(read_documents(CORPUS, "valid").tokens[: params.length])[None], mixable.model.device)
    costs: dict[Cost, Costs] = {"state": state_costs(mixable, ids)}
    timed: list[Cost] = [budget.cost for budget in budgets_of(params) if budget.cost != "state"]
    return costs | {sort: time_costs(mixable, sort, params.length) for sort in dict.fromkeys(timed)}
