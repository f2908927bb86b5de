"""What a table is: cells as text for the page, and the raw numbers behind them for the download."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

Row = Any
Cell = Callable[[Row], str]
Kind = Literal["number", "text", "wide"]


@dataclass(frozen=True)
class Column:
    """One column of a table as the page shows it.

    Attributes:
        heading: what stands above it; two columns may have the same.
        cell: a row of the table's frame -> the text of its cell.
        kind: number, set flush right; text; or wide, whole sentences.
        swatch: whether each cell begins with the mark of the variant that its row is about.
    """

    heading: str
    cell: Cell
    kind: Kind = "number"
    swatch: bool = False


@dataclass(kw_only=True)
class Table:
    """A table of the page with what its download holds.

        Table(
            name="floors",
            title="KL without attention",
            columns=[variant_column(), column("KL", "kl", formats.number)],
            frame=pd.DataFrame({"variant": ["none"], "kl": [2.0]}),
            command="dvc repro evaluate",
        )

    Attributes:
        name: file name of the download, and id; unique on the page.
        title: what stands above it.
        columns: from left to right.
        frame: a row each, as the download has it; its column `variant`, where it has one, says whom a row is about.
        command: what makes the records behind it.
        note: what stands below it; **...** is bold.
        group: the column of `frame` whose text stands above the rows that share it; empty: none.
    """

    name: str
    title: str
    columns: Sequence[Column]
    frame: pd.DataFrame
    command: str
    note: str = ""
    group: str = ""

    @property
    def headings(self) -> list[str]:
        return [column.heading for column in self.columns]

    def rows(self) -> list[list[str]]:
        """The cells, row by row."""
        return [[column.cell(row) for column in self.columns] for row in self.frame.to_dict("records")]

    def groups(self) -> list[str]:
        """What stands above each row: the group's name at its first row, nothing at the others."""
        names = [str(name) for name in self.frame[self.group]] if self.group else [""] * len(self.frame)
        return [name if i == 0 or name != names[i - 1] else "" for i, name in enumerate(names)]

    def variants(self) -> list[str | None]:
        """The variant that each row is about, for its colour."""
        return list(self.frame["variant"]) if "variant" in self.frame else [None] * len(self.frame)


def column(heading: str, key: str, show: Callable[[Any], str] = str, kind: Kind = "number") -> Column:
    """A column that shows one value of each row."""
    return Column(heading, lambda row: show(row[key]), kind)


def variant_column(name: Callable[[Any], str] = str) -> Column:
    """The column that says which variant a row is about, by its name and its mark."""
    return Column("variant", lambda row: name(row["variant"]), "text", swatch=True)


def csv(frame: pd.DataFrame) -> str:
    """A download: six digits, no index."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
