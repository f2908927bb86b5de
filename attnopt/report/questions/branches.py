"""Whether the far branch of every hybrid does anything: the whole student against its window alone."""

from typing import Any

import pandas as pd

from attnopt.report.context import KL, Answer, Context, absent
from attnopt.report.data import summary
from attnopt.report.parts import formats
from attnopt.report.parts.figures import Axis, Figure, Panel, Series, one_view, ordered, row_height
from attnopt.report.parts.tables import Column, Table, column, variant_column
from attnopt.statistics import STANDARD_ERRORS, Estimate, margin

SLUG, QUESTION = "branches", "Is every far branch alive?"
WHOLE = ("both", "all")
NEGLIGIBLE = 0.05
"""A far branch that takes less than this share off the window's KL is dead."""


def answer(context: Context) -> Answer:
    table = _branches(context)
    frame = pd.DataFrame([row for _, rows in table.groupby("variant", sort=False) if (row := _compared(rows))])
    if not len(frame):
        return absent(SLUG, QUESTION, "of no hybrid was the KL recorded with its window alone and as a whole")
    return Answer(
        slug=SLUG,
        question=QUESTION,
        short=_short(frame),
        sentences=[_sentence(row) for row in frame.to_dict("records")],
        limits=[
            "Branches are switched off in a student that was trained with all of them, on some validation blocks. "
            f"Alive: the window alone is worse by more than {STANDARD_ERRORS} standard errors of the difference, block "
            "by block. "
            f"Dead: not so, and even at the end of that interval by less than {100 * NEGLIGIBLE:.0f} % of its KL."
        ],
        figures=[_figure(context, table)],
        tables=[_table(context, frame)],
    )


def _branches(context: Context) -> pd.DataFrame:
    """variant, branches, kl, se and difference's se of the variants that compete; means over seeds, the whole first."""
    table = context.records.branches
    table = table[table["variant"].isin(context.records.candidates)]
    table = table.assign(branches=table["branches"].where(~table["branches"].isin(WHOLE), "whole"))
    keys = ["variant", "branches"]
    whole = table[table["branches"] == "whole"].set_index(["variant", "seed"])["kl_forward"]
    index = pd.MultiIndex.from_frame(table[["variant", "seed"]])
    table = table.assign(difference=table["kl_forward"] - whole.reindex(index).to_numpy())
    return summary.pooled(table, keys, {"kl_forward": "kl_forward_se", "difference": "difference_se"})


def _compared(rows: pd.DataFrame) -> dict[str, Any]:
    """KL by branch and what the window alone lacks; empty where the one or the whole is missing."""
    kl = {row["branches"]: row["kl_forward"] for row in rows.to_dict("records")}
    lack = rows[rows["branches"] == "window"]
    if "whole" not in kl or not len(lack):
        return {}
    lacking = Estimate(float(lack["difference"].iloc[0]), float(lack["difference_se"].iloc[0]))
    found = {"variant": rows["variant"].iloc[0], "verdict": _verdict(lacking, kl["window"])}
    found |= {"difference": lacking.value, "difference_se": lacking.error, "share": lacking.value / kl["window"]}
    return found | {f"kl_{branch}": value for branch, value in kl.items()}


def _verdict(lacking: Estimate, window: float) -> str:
    """Without a standard error nothing can be told."""
    if lacking.clearly_above(0.0):
        return "alive"
    return "dead" if lacking.interval[1] < NEGLIGIBLE * window else "cannot tell"


def _short(frame: pd.DataFrame) -> str:
    groups = {verdict: list(frame.loc[frame["verdict"] == verdict, "variant"]) for verdict in ("alive", "dead")}
    unknown = list(frame.loc[frame["verdict"] == "cannot tell", "variant"])
    word = "Yes" if len(groups["alive"]) == len(frame) else "No" if groups["dead"] else "Not decided"
    parts = [f"{verdict} in {formats.listing(f'**{n}**' for n in names)}" for verdict, names in groups.items() if names]
    if unknown:
        parts.append(f"this run cannot tell for {formats.listing(unknown)}")
    return f"{word}: {'; '.join(parts)}."


def _sentence(row: dict[str, Any]) -> str:
    gap = formats.plus_minus(row["difference"], row["difference_se"])
    return (
        f"{row['variant']}: KL {formats.number(row['kl_whole'])} as a whole and {formats.number(row['kl_window'])} "
        f"with the window alone, a difference of {gap} ({formats.percent(row['share'])} of the latter): "
        f"{row['verdict']}."
    )


def _table(context: Context, frame: pd.DataFrame) -> Table:
    parts = [str(key).removeprefix("kl_") for key in frame if str(key).startswith("kl_")]
    return Table(
        name="branches",
        title="KL with some branches alone",
        columns=[
            variant_column(context.name),
            *(column("whole" if part == "whole" else f"{part} alone", f"kl_{part}", formats.number) for part in parts),
            Column("window alone less whole", lambda r: formats.plus_minus(r["difference"], r["difference_se"])),
            column("share", "share", formats.percent),
            column("far branch", "verdict", kind="text"),
        ],
        frame=frame,
        command="dvc repro evaluate",
        note="On the same validation blocks for all; means over seeds, ± one standard error over blocks and seeds.",
    )


def _figure(context: Context, table: pd.DataFrame) -> Figure:
    parts = list(dict.fromkeys(table["branches"]))
    parts = ["whole", *(part for part in parts if part != "whole")]
    series = []
    for i, part in enumerate(parts):
        rows = table[table["branches"] == part]
        half = margin(rows["kl_forward_se"].fillna(0))
        low, high = (list((rows["kl_forward"] + sign * half).clip(lower=1e-6)) for sign in (-1, 1))
        name = "whole" if part == "whole" else f"{part} alone"
        x, y = list(rows["kl_forward"]), [context.name(v) for v in rows["variant"]]
        series.append(Series(name, ordered(i, len(parts)), x, y, low, high, along="x", line=False))
    names = [context.name(str(v)) for v in dict.fromkeys(table["variant"])]
    return Figure(
        name="branches",
        title="KL with some branches alone",
        alt=f"KL of {formats.listing(names)} as a whole and with some branches alone.",
        caption="Mean over seeds with a 95 % interval (blocks and seeds), on some validation blocks.",
        views=one_view(Panel("", Axis(KL, log=True), Axis("", categories=names), series)),
        frame=table,
        command="dvc repro evaluate",
        columns=1,
        height=row_height(len(names)),
    )
