"""The page of several runs: tables, a figure of every measure, and the files that hold them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from attnopt.core.errors import UserError
from attnopt.core.files import written_aside
from attnopt.report.compare import runs
from attnopt.report.compare.data import Comparison, kl_words, shown
from attnopt.report.context import KL, LEVELS
from attnopt.report.params import ReportParams
from attnopt.report.parts import formats
from attnopt.report.parts.figures import Axis, Figure, Panel, Series, one_view, row_height
from attnopt.report.parts.tables import Column, Table, column, csv, variant_column
from attnopt.report.render import fill, png


def write_comparison(sources: Sequence[str], params: ReportParams, out: Path) -> Path:
    """Read every run, write compare.html, compare.md and the folder compare (figures and CSV) into `out`.

    Returns: the page. Raises: UserError that names a run that cannot be read.
    """
    if len(sources) < 2:
        raise UserError("--compare takes two or more runs: folders, git revisions or experiments' names")
    comparison = Comparison([runs.read_run(source, params) for source in sources])
    drawings, files = figures(comparison), downloads(comparison)
    with written_aside(out / "compare") as folder:
        folder.mkdir()
        drawn = png.draw_pngs(drawings, folder)
        for name, text in files.items():
            (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    values = {"comparison": comparison, "title": f"{len(sources)} runs compared"}
    values |= {"figures": drawings, "results": _results(comparison), "runs": _settings(comparison)}
    pages = {
        "compare.html": fill.fill_html("compare.html.j2", drawings, files, comparison.looks, **values),
        "compare.md": fill.fill_markdown("compare.md.j2", drawn=drawn, data="compare", images="compare", **values),
    }
    for name, text in pages.items():
        with written_aside(out / name) as aside:
            aside.write_text(text, encoding="utf-8")
    return out / "compare.html"


def figures(comparison: Comparison) -> list[Figure]:
    """Every measure over the setting that differs, or by run; none where nothing was measured."""
    every, moved = comparison.frame, comparison.moved
    rows = every[every["variant"].isin(moved)] if moved else every
    names = {measure: name for measure, name in _names(comparison).items() if rows[measure].notna().any()}
    over = f"over {comparison.numeric}" if comparison.numeric else "by run"
    left_out = " Variants that are the same in every run are left out." if len(rows) < len(every) else ""
    figure = Figure(
        name="compare",
        title=f"Every measure, {over}",
        alt=f"{'; '.join(names.values())}; {over}, of {formats.listing(dict.fromkeys(rows['variant']))}",
        caption=f"Bars and bands: one standard error of the KL, quartiles of the time.{left_out} "
        f"{comparison.runs[0].context.hardware}",
        views=one_view(*(_panel(comparison, rows, measure, name) for measure, name in names.items())),
        frame=comparison.numbers(rows),
        command=comparison.command,
        columns=2,
        height=260 if comparison.numeric else max(160, row_height(len(comparison.runs))),
    )
    return [figure] if names else []


def _panel(comparison: Comparison, rows: pd.DataFrame, measure: str, name: str) -> Panel:
    log = measure == "state" and bool((rows[measure].dropna() > 0).all())
    series = [_series(comparison, own, measure) for _, own in rows.groupby("variant", sort=False)]
    if comparison.numeric is None:
        return Panel("", Axis(name, log=log), Axis("", categories=comparison.labels), series)
    values = sorted(map(float, comparison.differing[comparison.numeric]))
    wide = values[0] > 0 and values[-1] >= 4 * values[0]
    return Panel("", Axis(comparison.numeric, log=wide, ticks=values), Axis(name, log=log), series)


def _series(comparison: Comparison, rows: pd.DataFrame, measure: str) -> Series:
    variant = str(rows["variant"].iloc[0])
    context = next(run.context for run in comparison.runs if variant in run.context.looks)
    places = comparison.differing[comparison.numeric] if comparison.numeric else comparison.labels
    rows = rows.assign(at=[places[run] for run in rows["run"]])
    rows = rows.sort_values("at") if comparison.numeric else rows
    low, high = _range(rows, measure)
    interval: dict[str, Any] = {"low": low, "high": high, "notes": list(rows["label"])}
    if comparison.numeric:
        return context.series(variant, rows["at"], rows[measure], **interval)
    return context.series(variant, rows[measure], rows["at"], along="x", line=False, **interval)


def _names(comparison: Comparison) -> dict[str, str]:
    at = f" at {formats.length(comparison.length)} tokens" if comparison.length else ""
    return {
        "kl": f"{KL}, on {comparison.on}",
        "ppl_ratio": f"perplexity over the teacher’s, on {comparison.on}",
        "decode_ms": f"decoding{at}, ms per token",
        "state": f"state{at}, bytes per sequence",
    }


def _results(comparison: Comparison) -> list[Table]:
    """Quality and costs of every variant and run; apart where they are not of one length."""
    at = f" at {formats.length(comparison.length)}" if comparison.length else ""
    leaks = set().union(*(run.context.records.leaks for run in comparison.runs))
    who = [
        variant_column(lambda variant: f"{variant} (leaks)" if variant in leaks else variant),
        column("run", "label", kind="text"),
    ]
    quality = [Column("KL", kl_words), column("perplexity over teacher's", "ppl_ratio", formats.times)]
    costs = [
        column(f"decode{at}, ms", "decode_ms", formats.number),
        column(f"prefill{at}, ms", "prefill_ms", formats.number),
        column(f"state{at}", "state", formats.size),
    ]
    measured = (
        f"Quality on {comparison.on}, the {_split(comparison)} split, KL in nats per token, ± one standard error."
    )
    parts = {"results": ("Variants by run", quality, measured), "costs": (f"Costs{at}", costs, _where(comparison))}
    if comparison.beside:
        parts = {"results": ("Variants by run", [*quality, *costs], f"{measured} {_where(comparison)}")}
    return [
        Table(
            name=f"compare_{name}",
            title=title,
            columns=[*who, *columns],
            frame=comparison.numbers(comparison.frame),
            command=comparison.command,
            note=note,
        )
        for name, (title, columns, note) in parts.items()
        if name == "results" or comparison.length is not None
    ]


def _split(comparison: Comparison) -> str:
    return "test" if comparison.quality_length else comparison.runs[0].context.params.split


def _settings(comparison: Comparison) -> Table:
    keys = list(comparison.differing)
    rows = [[shown(comparison.differing[key][i]) for key in keys] for i in range(len(comparison.runs))]
    frame = pd.DataFrame(rows, columns=keys)
    frame.insert(0, "read from", [run.source for run in comparison.runs])
    return Table(
        name="compare_runs",
        title="The runs, and what differs in their params.yaml",
        columns=[column(key, key, kind="number" if comparison.numeric == key else "text") for key in frame.columns],
        frame=frame,
        command=comparison.command,
    )


def _where(comparison: Comparison) -> str:
    levels = set(comparison.frame["level"].dropna())
    measured = formats.listing(LEVELS[level] for level in sorted(levels))
    return f"Times and state: {measured}. {comparison.runs[0].context.hardware}" if levels else ""


def downloads(comparison: Comparison) -> dict[str, str]:
    """Every table and figure's numbers as CSV."""
    files = {table.name: csv(table.frame) for table in (*_results(comparison), _settings(comparison))}
    return files | {f"figure_{figure.name}": csv(figure.frame) for figure in figures(comparison)}


def _range(rows: pd.DataFrame, measure: str) -> tuple[list[float] | None, list[float] | None]:
    if measure == "kl":
        return list(rows["kl"] - rows["kl_se"]), list(rows["kl"] + rows["kl_se"])
    if measure == "decode_ms":
        return list(rows["decode_ms_q1"]), list(rows["decode_ms_q3"])
    return None, None
