"""Tables of what the students were probed for: classes of tokens, errors of layers, pruned coefficients."""

from typing import Any

import pandas as pd

from attnopt.report import words
from attnopt.report.context import Context
from attnopt.report.tables import Cell, Table, column


def classes(context: Context) -> list[Table]:
    """KL by class of the predicted token, of the variants that compete; empty where it was not recorded."""
    table = context.records.classes
    table = table[table["split"].eq(context.params.split) & table["variant"].isin(context.ranked.index)]
    found = []
    for by, rows in table.groupby("by", sort=False):
        found.append(_wide(context, rows, "class", "kl", f"classes_{by}", f"KL by {by} of the predicted token"))
    return found


def layers(context: Context) -> list[Table]:
    """Relative output error by layer, of the variants that compete; empty where it was not recorded."""
    table = context.records.layers
    table = table[table["variant"].isin(context.ranked.index)]
    table = table.assign(layer=[f"layer {int(n)}" for n in table["layer"]])
    title = "Relative error of each layer's output on the teacher's own inputs"
    return [_wide(context, table, "layer", "error", "layer_errors", title)] if len(table) else []


def _wide(context: Context, rows: pd.DataFrame, across: str, value: str, name: str, title: str) -> Table:
    frame = rows.pivot_table(index="variant", columns=across, values=value, sort=False).reset_index()
    cells: dict[str, Cell] = {str(key): column(str(key), words.number) for key in frame.columns[1:]}
    return Table(
        name=name,
        title=title,
        columns={"variant": column("variant", context.name)} | cells,
        frame=frame,
        command="dvc repro evaluate",
        note="Means over seeds.",
        text={"variant"},
    )


def pruned(context: Context, variant: str) -> list[Table]:
    """KL with the coefficients under each threshold cut; empty where it was not recorded."""
    rows = context.records.pruned
    rows = rows[rows["variant"] == variant]
    frame = rows.groupby("threshold")[["kept", "of", "kl_forward"]].mean().reset_index()
    table = Table(
        name=f"pruned_{variant}",
        title=f"KL of {variant} with its small coefficients dropped",
        columns={
            "dropped under": column("threshold", words.number),
            "kept": _kept,
            "KL": column("kl_forward", words.number),
        },
        frame=frame,
        command=f"dvc repro evaluate@{variant}",
        note="On some validation blocks, means over seeds.",
    )
    return [table] if len(frame) else []


def _kept(row: Any) -> str:
    return f"{words.count(row['kept'])} of {words.count(row['of'])}"
