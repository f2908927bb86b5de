"""Which students are searched, and whether the record holds. Needs no torch, so that a look is quick."""

from collections.abc import Mapping
from pathlib import Path

from attnopt.core.code import code_digest
from attnopt.core.errors import UserError
from attnopt.core.keep import key_of
from attnopt.core.paths import CORPUS, LIBRARY, TEACHER
from attnopt.records.distill import StudentCard
from attnopt.search.params import SearchParams
from attnopt.student.jobs import library_folder
from attnopt.teacher.params import TeacherParams

SOFTMAX = "softmax"


def searched(variants: Mapping[str, str], controls: list[str], params: SearchParams) -> dict[str, Path]:
    """The library's students to choose from, by variant, of the first seed each.

    Softmax is always there and never one of them; nor is a variant whose mechanism sees the future.

    Raises: UserError where the library lacks one, or there is none but softmax.
    """
    wanted = params.variants or [name for name, kind in variants.items() if name not in controls or kind == "none"]
    found = {name: library_folder(name) for name in wanted if variants[name] != SOFTMAX}
    cards = {name: StudentCard.read(folder / "student.json") for name, folder in found.items()}
    kept = {name: folder for name, folder in found.items() if cards[name].control is None}
    if not kept:
        raise UserError(f"search: {LIBRARY} has no variant to choose from besides softmax")
    return kept


def search_key(library: Mapping[str, Path], teacher: TeacherParams, params: SearchParams) -> str:
    """Digest of all that the record is a function of."""
    kinds = {kind for folder in library.values() for kind in StudentCard.read(folder / "student.json").kinds}
    code = code_digest("stages.search", *(f"attnopt.mechanisms.{kind}" for kind in ("softmax", *sorted(kinds))))
    data = (CORPUS / "manifest.json", TEACHER / "manifest.json")
    return key_of("search", code, params, teacher, *data, list(library), *library.values())
