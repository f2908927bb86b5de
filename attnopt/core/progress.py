"""Progress on stderr: a bar on a terminal, a line now and then in a log."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(iterable: Any = None, *, name: str, unit: str = "it", total: int | None = None) -> Any:
    """tqdm with this project's manners."""
    quiet = {} if sys.stderr.isatty() else {"mininterval": 5.0, "ncols": 100}
    return tqdm(iterable, desc=name, unit=unit, total=total, dynamic_ncols=sys.stderr.isatty(), **quiet)
