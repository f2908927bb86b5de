"""What a figure is: data only. `png.py` draws it for Markdown and `charts.js` in the page, both from this."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pandas as pd

SHAPES = ("circle", "square", "triangle", "diamond", "down", "hexagon")
PALETTE = ("#0072b2", "#c8500a", "#00845f", "#a8418a", "#a37200", "#2b93c4", "#4b3fa7", "#8c1c4a", "#6f7318", "#855236")
NAMED = {"ink": "#1c2127", "grey": "#7a828c", "leak": "#7a828c", "hair": "#b8bec6", "front": "#9aa2ad"}
RAMP = ("#0a5c96", "#c8500a")
"""Light theme; the page's style sheet has the dark one. Colour-blind safe together with shape and dash."""


@dataclass(frozen=True)
class Style:
    """How something looks everywhere: colour (a variable of the style sheet, or r37), marker, dash."""

    colour: str
    shape: str
    dash: str = ""

    @property
    def hex(self) -> str:
        """Its colour on white; r37 is 37 % of the way along the ramp."""
        if self.colour.startswith("r"):
            share = int(self.colour[1:]) / 100
            ends = ([int(end[i : i + 2], 16) for i in (1, 3, 5)] for end in RAMP)
            return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(*ends, strict=True))
        return NAMED.get(self.colour) or PALETTE[int(self.colour[1:])]


def numbered(i: int) -> Style:
    """The look of the i-th variant."""
    return Style(f"c{i % len(PALETTE)}", SHAPES[i % len(SHAPES)], "6 3" if i % len(PALETTE) >= 5 else "")


def ordered(i: int, count: int) -> Style:
    """The look of the i-th of things that are not variants."""
    return Style(f"r{round(100 * i / max(1, count - 1))}", SHAPES[i % len(SHAPES)], ("", "6 3", "2 2")[i % 3])


@dataclass
class Axis:
    label: str
    log: bool = False
    categories: list[str] | None = None
    ticks: list[float] | None = None


@dataclass
class Series:
    """Points, joined where `line`; low and high are the interval, along y or along x; hollow ones are small besides."""

    name: str
    style: Style
    x: Sequence[Any]
    y: Sequence[Any]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    along: Literal["x", "y"] = "y"
    line: bool = True
    points: bool = True
    label: bool = False
    hollow: bool = False
    notes: Sequence[str] | None = None


@dataclass
class Rule:
    """A reference line at a value of one axis."""

    axis: Literal["x", "y"]
    at: float
    label: str = ""


@dataclass
class Heat:
    """A matrix: z[row][column], rows by y categories, columns by x categories."""

    x: list[str]
    y: list[str]
    z: list[list[float | None]]
    label: str


@dataclass
class Panel:
    title: str
    x: Axis
    y: Axis
    series: list[Series] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    heat: Heat | None = None


@dataclass
class View:
    """One choice of a figure's selectors; a figure with one view has none.

    Attributes:
        label: in the first selector. of: in a second one, where a figure has such.
    """

    label: str
    panels: list[Panel]
    of: str = ""


@dataclass(kw_only=True)
class Figure:
    """A figure as data, drawn by the page's script and by matplotlib alike.

    Attributes:
        name: file name and id; unique on the page.
        title, caption: what stands by it.
        alt: what it shows, in words.
        views: what its selector chooses between; one view has no selector.
        frame: its numbers, for the download.
        command: what makes the records that it is drawn from.
        columns: panels side by side at most.
        height: of a panel, in pixels of the page.
        legend: above the panels, or below them.
    """

    name: str
    title: str
    alt: str
    caption: str
    views: list[View]
    frame: pd.DataFrame
    command: str
    columns: int = 3
    height: int = 260
    legend: Literal["above", "below"] = "above"

    def spec(self) -> dict[str, Any]:
        """What the page's script needs, as JSON has it."""
        keys = ("name", "columns", "height", "alt", "legend")
        return plain({key: getattr(self, key) for key in keys} | {"views": [asdict(view) for view in self.views]})


def one_view(*panels: Panel) -> list[View]:
    return [View("", list(panels))]


def row_height(rows: int) -> int:
    """Height of a panel with a category per row."""
    return 56 + 26 * rows


def plain(content: Any) -> Any:
    """Content as JSON has it: NaN and infinities as null, six digits."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    if hasattr(content, "tolist"):
        content = content.tolist()
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    if isinstance(content, float):
        return float(f"{content:.6g}") if math.isfinite(content) else None
    return content


def thinned(table: pd.DataFrame, limit: int = 300) -> pd.DataFrame:
    """At most about `limit` rows, evenly spread, the last kept."""
    if len(table) <= limit:
        return table
    return pd.concat([table.iloc[: -1 : math.ceil(len(table) / limit)], table.iloc[[-1]]])


def ticks(values: Iterable[float]) -> list[float]:
    return sorted({float(value) for value in values})
