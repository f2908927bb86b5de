"""From which context length a variant is faster and smaller than softmax, and how its costs grow."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from attnopt import statistics
from attnopt.report.context import CONTROL_LOOKS, LEVELS, Answer, Context, absent
from attnopt.report.data import summary
from attnopt.report.parts import formats
from attnopt.report.parts.figures import Axis, Figure, Panel, Rule, Series, View, ticks
from attnopt.report.parts.tables import Column, Table, column, variant_column
from attnopt.report.questions import bench_tables

SLUG, QUESTION = "crossovers", "From which context length is it faster and smaller than softmax?"
PHASES = {"prefill": "prefill time", "decode": "decoding time"}
STATE = "decoding state"
FOUND = ("at", "at_low", "at_high", "exponent", "exponent_low", "exponent_high", "shortest", "longest")
CONTEXT_AXIS = "context length, tokens"


def answer(context: Context) -> Answer:
    frame = pd.DataFrame(list(_crossings(context)), columns=["variant", "level", "what", *FOUND, "exponent_softmax"])
    ranked = frame[frame["variant"].isin(context.records.candidates)].astype({"at": float})
    if not len(ranked):
        return absent(SLUG, QUESTION, "no variant that competes was timed beside softmax at two lengths or more")
    groups = ranked.groupby(["level", "what"], sort=False)
    only_model = summary.levels(context.records) == ["model"]
    hidden = (
        "Only the whole model was timed: its MLPs and vocabulary are in every number and hide part of the difference."
    )
    return Answer(
        slug=SLUG,
        question=QUESTION,
        short=_short(ranked[ranked["level"] == ranked["level"].iloc[0]]),
        sentences=[_sentence(group, str(what), str(level)) for (level, what), group in groups],
        limits=[*([hidden] if only_model else []), *bench_tables.disputed(context)],
        figures=[_ratios(context), _growth(context)],
        tables=[_table(context, frame), *bench_tables.tables(context)],
    )


def _crossings(context: Context) -> Iterator[dict[str, Any]]:
    """A row per level, variant and cost.

    `at` is the crossover: None where softmax is ahead at the longest length, the shortest length where it never is.
    """
    for level in summary.levels(context.records):
        for phase, what in PHASES.items():
            table = summary.bench_rows(context.records, level, phase)
            for variant, group in table[table["ratio"].notna()].groupby("variant", sort=False):
                if len(group) < 2 or context.records.variants[str(variant)] == "softmax":
                    continue
                who = {"variant": str(variant), "level": level}
                yield who | {"what": what} | _timed(group, context.params.resamples)
                if phase == "decode" and group[["state_bytes", "baseline_state"]].gt(0).all(axis=None):
                    yield who | {"what": STATE} | _sized(group)


def _timed(group: pd.DataFrame, resamples: int) -> dict[str, Any]:
    lengths, own, softmax = (list(group[key]) for key in ("length", "median", "baseline"))
    samples, softmax_samples = (list(group[key]) for key in ("samples", "baseline_samples"))
    low, high = statistics.crossover_interval(lengths, samples, softmax_samples, resamples=resamples)
    found = {"at": statistics.crossover(lengths, own, softmax), "at_low": low, "at_high": high}
    return found | _growths(lengths, own, softmax)


def _sized(group: pd.DataFrame) -> dict[str, Any]:
    """The same for bytes, which do not vary."""
    lengths, own, softmax = (list(group[key]) for key in ("length", "state_bytes", "baseline_state"))
    at = statistics.crossover(lengths, own, softmax)
    return {"at": at, "at_low": at, "at_high": at} | _growths(lengths, own, softmax)


def _growths(lengths: list[float], own: list[float], softmax: list[float]) -> dict[str, float]:
    """Exponents over the longer half of the lengths, or over all where there are fewer than six."""
    start = len(lengths) // 2 if len(lengths) >= 6 else 0
    fit, base = (statistics.fit_exponent(lengths[start:], costs[start:]) for costs in (own, softmax))
    found = {"exponent": fit.exponent, "exponent_low": fit.low, "exponent_high": fit.high}
    return found | {"exponent_softmax": base.exponent, "shortest": lengths[0], "longest": lengths[-1]}


def _short(table: pd.DataFrame) -> str:
    """For each kind of cost how many get there, and who is first."""
    parts = []
    for what, rows in table.groupby("what", sort=False):
        there = rows[rows["at"].notna()].sort_values("at", kind="stable")
        parts.append(f"**{len(there)} of {len(rows)}** take less {what}")
        later = there[there["at"] > there["shortest"]]
        if len(later):
            earlier = len(there) - len(later)
            parts[-1] += f", {earlier} of them at every length measured" if earlier else ""
            parts[-1] += f", {later.iloc[0]['variant']} from {_at(later.iloc[0])} tokens"
    level, longest = LEVELS[table["level"].iloc[0]], formats.length(table["longest"].max())
    return f"By {longest} tokens ({level}), against softmax, {'; '.join(parts)}."


def _sentence(table: pd.DataFrame, what: str, level: str) -> str:
    """Who wins everywhere, who from where on, who never."""
    less, parts = "smaller" if what == STATE else "faster", []
    if always := list(table.loc[table["at"] <= table["shortest"], "variant"]):
        parts.append(f"{formats.listing(always)} at every length measured")
    later = table[table["at"] > table["shortest"]].sort_values("at")
    parts += [f"{row['variant']} from {_at(row)} tokens" for row in later.to_dict("records")]
    if never := list(table.loc[table["at"].isna(), "variant"]):
        parts.append(f"{formats.listing(never)} not up to {formats.length(table['longest'].max())}")
    return f"{what.capitalize()}, {LEVELS[level]}, {less} than softmax: {'; '.join(parts)}."


def _at(row: Any) -> str:
    """A crossover in tokens as text: 730 [690, 770]."""
    if formats.missing(row["longest"]):
        return formats.MISSING
    if formats.missing(row["at"]):
        return f"not up to {formats.length(row['longest'])}"
    if row["at"] <= row["shortest"]:
        return f"≤ {formats.length(row['shortest'])}"
    low, high = row["at_low"], row["at_high"]
    if low == high:
        return formats.count(row["at"])
    start = f"≤ {formats.length(row['shortest'])}" if low is not None and low <= row["shortest"] else formats.count(low)
    end = f"> {formats.length(row['longest'])}" if formats.missing(high) else formats.count(high)
    return f"{formats.count(row['at'])} {formats.interval(start, end)}"


def _table(context: Context, frame: pd.DataFrame) -> Table:
    """A row for each level and variant, the costs side by side."""
    rows = []
    for (level, variant), group in frame.groupby(["level", "variant"], sort=False):
        costs = {f"{c['what']}: {key}": c[key] for c in group.to_dict("records") for key in FOUND}
        rows.append({"variant": variant, "level": level} | costs)
    level_too = [column("level", "level", LEVELS.__getitem__, "text")] if frame["level"].nunique() > 1 else []
    base = frame.groupby(["level", "what"], sort=False)["exponent_softmax"].median()
    softmax = [f"{LEVELS[str(level)]}, {what} {formats.fixed(value)}" for (level, what), value in base.items()]
    return Table(
        name="crossovers",
        title="Crossovers and exponents",
        columns=[
            variant_column(context.name),
            *level_too,
            *(pair for what in frame["what"].unique() for pair in _pair(str(what))),
        ],
        frame=pd.DataFrame(rows),
        command="dvc repro bench",
        note="Crossovers are interpolated on log-log axes between measured lengths, with 95 % intervals from resampled "
        "raw samples; exponents are of cost over length, with 95 % intervals of the fit. "
        f"Softmax's own exponents: {'; '.join(softmax)}.",
    )


def _pair(what: str) -> list[Column]:
    """The columns of one kind of cost: where it becomes less than softmax's, and how it grows."""
    return [
        Column(f"less {what} from, tokens", lambda row: _at(_part(row, what))),
        Column(f"{what}, exponent", lambda row: _exponent(_part(row, what))),
    ]


def _part(row: dict[str, Any], what: str) -> dict[str, Any]:
    return {key: row.get(f"{what}: {key}") for key in FOUND}


def _exponent(row: dict[str, Any]) -> str:
    if formats.missing(row["exponent"]):
        return formats.MISSING
    low, high = row["exponent_low"], row["exponent_high"]
    known = not formats.missing(low) and high - low > 1e-6
    return formats.fixed(row["exponent"]) + (
        f" {formats.interval(formats.fixed(low), formats.fixed(high))}" if known else ""
    )


def _ratios(context: Context) -> Figure:
    """Time over softmax's against length."""
    views, frames = [], []
    for level in summary.levels(context.records):
        panels = []
        for phase, what in PHASES.items():
            rows = summary.bench_rows(context.records, level, phase)
            rows = rows[rows["ratio"].notna() & (rows["kind"] != "softmax")]
            series = [context.series(v, t["length"], t["ratio"]) for v, t in rows.groupby("variant", sort=False)]
            x = Axis(CONTEXT_AXIS, log=True, ticks=ticks(rows["length"]))
            y = Axis("over softmax's", log=True)
            panels.append(Panel(what.capitalize(), x, y, series, [Rule("y", 1.0)]))
            frames.append(rows)
        views.append(View(LEVELS[level], panels))
    keep = ["level", "phase", "variant", "length", "unit", "median", "baseline", "ratio"]
    return Figure(
        name="ratios",
        title="Time over softmax’s",
        alt="Prefill and decoding time of every variant over softmax's, against context length.",
        caption=f"Below the line a variant is faster than SDPA softmax in the same run. {context.hardware}",
        views=views,
        frame=pd.concat(frames, ignore_index=True)[keep],
        command="dvc repro bench",
        columns=2,
        height=300,
    )


def _growth(context: Context) -> Figure:
    """Time and memory against length, softmax beside; one view per level."""
    bench = context.records.bench
    stretched = " Beyond the teacher's positions its table is extended synthetically, for timing only."
    note = stretched if bench["synthetic_positions"].eq(True).any() else ""
    return Figure(
        name="growth",
        title="Time and memory against context length",
        alt="Prefill time, decoding time, peak memory and state of every variant against context length.",
        caption="Medians, the band from lower to upper quartile; softmax (SDPA) is the median over all the runs it was "
        f"interleaved in.{note} {context.hardware}",
        views=[View(LEVELS[level], _panels(context, level)) for level in summary.levels(context.records)],
        frame=bench.assign(n=bench["samples"].map(len, na_action="ignore")).drop(columns=["samples", "control"]),
        command="dvc repro bench",
        columns=2,
        height=280,
    )


def _panels(context: Context, level: str) -> list[Panel]:
    prefill, decode, train = (summary.bench_rows(context.records, level, p) for p in ("prefill", "decode", "train"))
    shown = [
        ("Prefill", "ms", prefill, "median", 1),
        ("Decoding", "ms per token", decode, "median", 1),
        ("Forward and backward", "ms", train, "median", 1),
        ("Peak memory, prefill", "MiB above the weights", prefill, "peak_mib", 1),
        ("State, decoding", "KiB per sequence", decode, "state_bytes", 1024),
    ]
    return [_panel(context, *panel) for panel in shown if panel[2][panel[3]].notna().any()]


def _panel(context: Context, title: str, unit: str, rows: pd.DataFrame, key: str, scale: int) -> Panel:
    timed = key == "median"
    own = (key, "q1", "q3") if timed else (key, key, key)
    softmax = ("baseline", "baseline_q1", "baseline_q3") if timed else (f"baseline_{key.split('_')[0]}",) * 3
    series = []
    for variant, table in rows[rows["kind"] != "softmax"].groupby("variant", sort=False):
        y, low, high = (table[k] / scale for k in own)
        flags = table[["synthetic_positions", "noisy"]].eq(True)
        if not timed:
            flags = flags.assign(disputed=table["memory_agrees"].eq(False) & (key == "peak_mib"))
        notes = [", ".join(name.replace("_", " ") for name, on in row.items() if on) for _, row in flags.iterrows()]
        series.append(context.series(variant, table["length"], y, low=low, high=high, notes=notes))
    base = rows.groupby("length")[list(dict.fromkeys(softmax))].median().dropna() / scale
    y, low, high = (list(base[k]) for k in softmax)
    series.append(Series("softmax (SDPA)", CONTROL_LOOKS["softmax"], list(base.index), y, low, high))
    return Panel(title, Axis(CONTEXT_AXIS, log=True, ticks=ticks(rows["length"])), Axis(unit, log=True), series)
