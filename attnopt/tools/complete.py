"""What a shell may complete: names from params.yaml and of studies. Says nothing where there is nothing to say."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnopt.settings import Settings


def variant_names(incomplete: str) -> list[str]:
    return _beginning(incomplete, lambda: _settings().variants)


def mix_names(incomplete: str) -> list[str]:
    return _beginning(incomplete, lambda: _settings().mixes)


def student_names(incomplete: str) -> list[str]:
    return _beginning(incomplete, lambda: _settings().students)


def studies(incomplete: str) -> list[str]:
    from attnopt.tools.study import study_names

    return _beginning(incomplete, study_names)


def _settings() -> "Settings":
    from attnopt.settings import load_settings

    return load_settings(variants=False)


def _beginning(incomplete: str, names: Callable[[], Iterable[str]]) -> list[str]:
    try:
        return [name for name in names() if name.startswith(incomplete)]
    except ValueError:  # a params.yaml that is not there or wrong
        return []
