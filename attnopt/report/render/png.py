"""Static twins of the figures for Markdown, drawn by matplotlib from the same description as the page's."""

import math
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from attnopt.report.parts import formats
from attnopt.report.parts.figures import Axis, Figure, Heat, Panel, Series, Style

MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "down": "v", "hexagon": "h"}
MARKERS |= {"plus": "P", "minus": "_", "cross": "X", "tick": "|", "none": "None", "ring": "o"}
LOOK: Any = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#8a929c",
    "axes.grid": True, "grid.color": "#e6e9ed", "axes.axisbelow": True, "axes.titlelocation": "left",
    "axes.titlesize": 9.5, "axes.titleweight": "bold", "xtick.color": "#4a525c", "ytick.color": "#4a525c",
    "text.parse_math": False,
}  # fmt: skip


def draw_pngs(figures: Sequence[Figure], folder: Path) -> dict[str, list[str]]:
    """Draw all figures, on Linux in a process for each core: a figure takes a fifth of a second, and nothing shares it.

    One after the other where torch is loaded, as `attnopt convert` has it: a process forked beside its threads may wait
    for a lock that none of them will let go.

    Returns: the names of each figure's files.
    """
    draw = partial(draw_png, folder=folder)
    if sys.platform != "linux" or len(figures) < 2 or "torch" in sys.modules:
        drawn = list(map(draw, figures))
    else:
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
            drawn = list(pool.map(draw, figures))
    return {figure.name: [path.name for path in paths] for figure, paths in zip(figures, drawn, strict=True)}


def draw_png(figure: Figure, folder: Path) -> list[Path]:
    """One PNG per view: NAME.png, NAME_2.png, ..."""
    paths = []
    for i, view in enumerate(figure.views, 1):
        path = folder / (f"{figure.name}.png" if i == 1 else f"{figure.name}_{i}.png")
        with mpl.rc_context(LOOK):
            _draw_view(view.panels, figure, path)
        paths.append(path)
    return paths


def _draw_view(panels: list[Panel], figure: Figure, path: Path) -> None:
    columns = min(figure.columns, max(len(panels), 1))
    rows = math.ceil(len(panels) / columns)
    canvas = Canvas(figsize=(max(7.0, 3.3 * columns), figure.height / 88 * rows + 0.8), layout="constrained")
    FigureCanvasAgg(canvas)
    grid = list(canvas.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=False):
        _panel(axes, panel)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    handles = {
        label: handle for axes in canvas.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        widest = 0.5 + 0.09 * max(map(len, handles))
        across = max(1, min(len(handles), int(canvas.get_figwidth() / widest)))
        canvas.legend(handles.values(), handles, loc="outside lower center", ncols=across, frameon=False)
    canvas.savefig(path, dpi=130, metadata={"Software": None})


def _panel(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x.label)
    axes.set_ylabel(panel.y.label)
    if panel.heat is not None:
        _heat(axes, panel.heat)
        return
    places = {c: -i for i, c in enumerate(panel.y.categories or [])}
    for series in panel.series:
        _series(axes, series, [places.get(y, y) for y in series.y], named=series.name not in places)
    for rule in panel.rules:
        (axes.axvline if rule.axis == "x" else axes.axhline)(rule.at, color="#8a929c", lw=1, ls=":")
        where: dict[str, Any] = {"fontsize": 7.5, "color": "#5a626c"}
        if rule.axis == "x":
            axes.text(rule.at, 1, f" {rule.label}", transform=axes.get_xaxis_transform(), va="top", **where)
        else:
            axes.text(1, rule.at, rule.label, transform=axes.get_yaxis_transform(), ha="right", va="bottom", **where)
    _axis(axes, "x", panel.x)
    _axis(axes, "y", panel.y)
    if places:
        axes.set_yticks(list(places.values()), list(places))


def _axis(axes: Axes, which: str, axis: Axis) -> None:
    positive = axes.dataLim.minposx if which == "x" else axes.dataLim.minposy
    ticked = axes.xaxis if which == "x" else axes.yaxis
    if not axis.log or not np.isfinite(positive):
        if axis.ticks:
            ticked.set_ticks(axis.ticks[:: math.ceil(len(axis.ticks) / 7)])
        return
    getattr(axes, f"set_{which}scale")("log")
    low, high = getattr(axes, f"get_{which}lim")()
    ticks = [t for t in axis.ticks or _log_ticks(low, high) if low <= t <= high]
    ticked.set_ticks(ticks[:: math.ceil(len(ticks) / 7)] if ticks else [])
    ticked.set_major_formatter(FuncFormatter(lambda value, _: _tick(float(value))))
    ticked.set_minor_locator(NullLocator())
    ticked.set_minor_formatter(NullFormatter())


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 of each decade, fewer where there are many decades, even steps where there is hardly one."""
    if high < 5 * low:
        return [float(t) for t in MaxNLocator(5).tick_values(low, high) if t > 0]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 50 else (1, 3) if high / low < 1e3 else (1,)
    return [step * 10.0**decade for decade in decades for step in steps]


def _tick(value: float) -> str:
    return formats.length(value) if value >= 1000 else f"{value:g}"


def _series(axes: Axes, series: Series, y: Sequence[float], named: bool) -> None:
    style, colour = series.style, series.style.hex
    hidden = not named or series.name == "" or style.shape == "tick" or series.hollow
    size = 3.5 if series.hollow else {"tick": 9, "ring": 11}.get(style.shape, 5)
    bare = series.hollow or style.shape == "ring"
    line = _dash(style) if series.line else "None"
    marker = MARKERS[style.shape] if series.points else "None"
    axes.plot(series.x, y, color=colour, ls=line, lw=1.4, marker=marker, ms=size,
              mfc="none" if bare else colour, label="_" if hidden else series.name, zorder=3)  # fmt: skip
    if series.low is not None and series.high is not None:
        if series.line:
            axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.15, lw=0)
        else:
            bars = axes.hlines if series.along == "x" else axes.vlines
            bars(y if series.along == "x" else series.x, series.low, series.high, color=colour, lw=1.2)


def _dash(style: Style) -> Any:
    return (0, tuple(float(part) for part in style.dash.split())) if style.dash else "-"


def _heat(axes: Axes, heat: Heat) -> None:
    values = np.array([[np.nan if v is None else v for v in row] for row in heat.z], dtype=float)
    top = float(np.nanmax(np.abs(values))) or 1.0
    signed = bool(np.nanmin(values) < 0)
    axes.imshow(values, aspect="auto", cmap="RdBu" if signed else "Blues", vmin=-top if signed else 0, vmax=top)
    axes.grid(False)
    axes.set_xticks(range(0, len(heat.x), math.ceil(len(heat.x) / 9)), heat.x[:: math.ceil(len(heat.x) / 9)])
    axes.set_yticks(range(0, len(heat.y), math.ceil(len(heat.y) / 9)), heat.y[:: math.ceil(len(heat.y) / 9)])
    if len(heat.x) <= 12:
        for (row, column), value in np.ndenumerate(values):
            axes.text(column, row, formats.number(float(value), 2), ha="center", va="center", fontsize=7,
                      color="white" if abs(value) > 0.6 * top else "#1c2127")  # fmt: skip
