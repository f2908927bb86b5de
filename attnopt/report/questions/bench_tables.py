"""Tables of the bench that are beside the crossovers: what a memory holds, train steps, batches; disputed peaks."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from attnopt.report.context import LEVELS, Context
from attnopt.report.data import summary
from attnopt.report.parts import formats
from attnopt.report.parts.tables import Column, Table, column, variant_column


def disputed(context: Context) -> list[str]:
    """Says how many peaks of memory two measurements do not agree on, and whose."""
    checked = context.records.bench[context.records.bench["memory_agrees"].isin([True, False])]
    table = checked[checked["memory_agrees"].eq(False)]
    if not len(checked):
        return []
    if not len(table):
        return [f"Two ways of measuring agree on all of {len(checked)} peaks of memory."]
    own = table[table["subject"] == "variant"]
    names = f": {context.names(list(dict.fromkeys(own['variant'])))}" if len(own) else ", none of a variant's own"
    return [f"{len(table)} of {len(checked)} peaks of memory are disputed by a second way of measuring{names}."]


def tables(context: Context) -> list[Table]:
    return [*_capacity(context), *_train(context), *_batches(context)]


def _capacity(context: Context) -> list[Table]:
    """How many sequences decode side by side in a memory, beside softmax of the same run."""
    rows = context.records.capacity
    rows = rows[rows["kind"] != "softmax"]
    own, softmax = (rows[rows["subject"] == subject] for subject in ("variant", "softmax"))
    keys = ["variant", "length", "memory_gib"]
    frame = own.merge(softmax[[*keys, "sequences", "sequence_mib"]], on=keys, how="left", suffixes=("", "_softmax"))
    frame = frame[frame["length"] == frame["length"].max()]
    if not len(frame):
        return []
    length, memory = frame["length"].iloc[0], frame["memory_gib"].iloc[0]
    return [
        _table(
            context,
            "capacity",
            f"Sequences of {formats.length(length)} tokens that decode side by side in {formats.number(memory)} GiB",
            frame.drop(columns=["control", "batches"], errors="ignore"),
            [
                column("sequences", "sequences", formats.count),
                column("softmax", "sequences_softmax", formats.count),
                column("MiB each", "sequence_mib", formats.number),
                column("softmax, MiB each", "sequence_mib_softmax", formats.number),
                column("weights, MiB", "weights_mib", formats.number),
            ],
            "Computed from measured weights, states and peaks of memory; softmax is that of the same run.",
        )
    ]


def _train(context: Context) -> list[Table]:
    parts = [summary.bench_rows(context.records, level, "train") for level in summary.levels(context.records)]
    return _timed(context, "train_steps", "Forward and backward of one training step", parts)


def _batches(context: Context) -> list[Table]:
    """Prefill and decoding of more sequences at once than in every other table."""
    table = context.records.bench
    more = sorted(table.loc[table["batch"] > table["batch"].min(), "batch"].unique())
    parts = [
        summary.bench_rows(context.records, "model", phase, batch) for batch in more for phase in ("prefill", "decode")
    ]
    return _timed(context, "batches", "More sequences at once", parts)


def _timed(context: Context, name: str, title: str, parts: list[pd.DataFrame]) -> list[Table]:
    parts = [rows for part in parts if len(rows := part[part["kind"] != "softmax"])]
    if not parts:
        return []
    keep = ["variant", "level", "phase", "unit", "length", "batch", "median", "q1", "q3", "baseline", "ratio"]
    keep += ["peak_mib", "baseline_peak", "memory_agrees", "noisy"]
    columns = [
        column("level", "level", LEVELS.__getitem__, "text"),
        column("phase", "phase", kind="text"),
        column("tokens", "length", formats.length),
        column("batch", "batch", formats.count),
        Column("time", lambda r: f"{formats.number(r['median'])} {r['unit']} {formats.interval(r['q1'], r['q3'])}"),
        column("over softmax's", "ratio", formats.times),
        Column("peak, MiB", _peak),
        column("softmax's peak", "baseline_peak", formats.number),
    ]
    note = f"Median and quartiles; softmax (SDPA) of the same run. {context.hardware}"
    return [_table(context, name, title, pd.concat(parts, ignore_index=True)[keep], columns, note)]


def _peak(row: Any) -> str:
    return formats.number(row["peak_mib"]) + (" (disputed)" if row["memory_agrees"] is False else "")


def _table(context: Context, name: str, title: str, frame: pd.DataFrame, columns: Sequence[Column], note: str) -> Table:
    return Table(
        name=name,
        title=title,
        columns=[variant_column(context.name), *columns],
        frame=frame,
        command="dvc repro bench",
        note=note,
    )
