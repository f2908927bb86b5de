"""What dropping small mask coefficients costs: KL against the share that is kept."""

from typing import Any

import pandas as pd

from attnopt.report.context import KL, Context
from attnopt.report.data import summary
from attnopt.report.parts import formats
from attnopt.report.parts.figures import Axis, Figure, Panel, one_view
from attnopt.report.parts.tables import Column, Table, column
from attnopt.statistics import margin


def cuts(context: Context, variant: str) -> pd.DataFrame:
    """kept, of, threshold, kl, its error, what the cut costs and that's error; means over seeds, nothing cut first."""
    table = context.records.pruned
    table = table[table["variant"] == variant].sort_values(["seed", "kept"], ascending=[True, False])
    table = table.assign(cost=table["kl_forward"] - table.groupby("seed")["kl_forward"].transform("first"))
    thresholds = table.groupby("kept")["threshold"].mean()
    rows = summary.pooled(table, ["kept", "of"], {"kl_forward": "kl_forward_se", "cost": "difference_se"})
    rows = rows.rename(columns={"kl_forward": "kl", "kl_forward_se": "kl_se", "difference_se": "cost_se"})
    return rows.assign(threshold=rows["kept"].map(thresholds)).sort_values("kept", ascending=False)


def sentences(context: Context, variant: str) -> list[str]:
    """How many can go for less than a standard error of the KL."""
    rows = cuts(context, variant)
    if len(rows) < 2 or rows["kl_se"].isna().all():
        return []
    whole, of = rows.iloc[0], formats.count(rows["of"].iloc[0])
    free = (rows["cost"] <= whole["kl_se"]).cumprod().astype(bool)
    last = rows[free].iloc[-1]
    error = f"one standard error of its KL, {formats.plus_minus(whole['kl'], whole['kl_se'])}"
    gone = int(whole["kept"] - last["kept"])
    if not gone:
        return [
            f"No cut of {variant}'s {of} coefficients that was tried costs less than {error}: {_cost(rows.iloc[1])}."
        ]
    more = f"; {_cost(rows[~free].iloc[0])}" if not free.all() else ", the most that was tried"
    return [f"**{gone} of {of}** coefficients of {variant} can go for less than {error}: {_cost(last)}{more}."]


def _cost(row: Any) -> str:
    change = formats.plus_minus(abs(row["cost"]), row["cost_se"])
    return f"with {formats.count(row['kept'])} kept it {'rises' if row['cost'] >= 0 else 'falls'} by {change}"


def tables(context: Context, variant: str) -> list[Table]:
    frame = cuts(context, variant)
    table = Table(
        name=f"pruned_{variant}",
        title=f"KL of {variant} with its small coefficients dropped",
        columns=[
            column("dropped under", "threshold", formats.number),
            Column("kept", lambda r: f"{formats.count(r['kept'])} of {formats.count(r['of'])}"),
            Column("KL", lambda r: formats.plus_minus(r["kl"], r["kl_se"])),
            Column("change", lambda r: formats.plus_minus(r["cost"], r["cost_se"])),
        ],
        frame=frame,
        command=f"dvc repro evaluate@{variant}",
        note="On some validation blocks, means over seeds; ± one standard error over blocks and seeds, that of the "
        "change block by block.",
    )
    return [table] if len(frame) else []


def figures(context: Context, variant: str) -> list[Figure]:
    frame = cuts(context, variant)
    if len(frame) < 2:
        return []
    share, half = 100 * frame["kept"] / frame["of"], margin(frame["cost_se"].fillna(0))
    series = context.series(variant, share, frame["kl"], low=frame["kl"] - half, high=frame["kl"] + half)
    return [
        Figure(
            name=f"pruned_{variant}",
            title=f"KL of {variant} against the share of coefficients kept",
            alt=f"KL of {variant} against the share of its coefficients that is kept.",
            caption="The smallest go first, those of all layers together. Mean over seeds; band: 95 % of the change "
            "from all of them, block by block.",
            views=one_view(Panel("", Axis("coefficients kept, %"), Axis(KL), [series])),
            frame=frame,
            command=f"dvc repro evaluate@{variant}",
            columns=1,
            height=280,
        )
    ]
