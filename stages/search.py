"""results/search: which variant's layer stands where, for every budget of state, from the library as it is."""

from attnopt.core.keep import holds
from attnopt.core.paths import RESULTS
from attnopt.search.jobs import search_key, searched
from attnopt.search.params import SearchParams
from attnopt.teacher.params import TeacherParams


def run(
    variants: dict[str, str], controls: list[str], teacher: TeacherParams, search: SearchParams, again: bool = False
) -> None:
    """The record, unless it holds."""
    library = searched(variants, controls, search)
    key, record = search_key(library, teacher, search), RESULTS / "search" / "record.json"
    if holds(record, key) and not again:
        return
    from attnopt.search.run import search_library  # torch, only where there is work

    search_library(library, teacher, search, key).write(record)
