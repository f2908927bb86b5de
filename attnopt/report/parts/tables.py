"""What a table is: cells as words for the page, and the raw numbers behind them for the download."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

Row = Any
Cell = Callable[[Row], str]


@dataclass(kw_only=True)
class Table:
    """Attributes:
    name: file name and id. columns: heading -> cell of a row. frame: a row each, as the download has it.
    command: what makes the records behind it.
    text: headings of words, the others are of numbers. wide: those of whole sentences.
    """

    name: str
    title: str
    columns: dict[str, Cell]
    frame: pd.DataFrame
    command: str
    note: str = ""
    text: set[str] = field(default_factory=set)
    wide: set[str] = field(default_factory=set)

    def kind_of(self, heading: str) -> str:
        return "wide" if heading in self.wide else "text" if heading in self.text else "number"

    def rows(self) -> list[list[str]]:
        return [[cell(row) for cell in self.columns.values()] for row in self.frame.to_dict("records")]

    def variants(self) -> list[str | None]:
        """The variant that each row is about, for its colour."""
        return list(self.frame["variant"]) if "variant" in self.frame else [None] * len(self.frame)


def csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def column(key: str, show: Callable[[Any], str] = str) -> Cell:
    """A cell that shows one value."""
    return lambda row: show(row[key])
