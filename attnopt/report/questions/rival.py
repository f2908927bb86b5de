"""Whether a mechanism is worth more than its bytes: beside the window with sinks of equal state."""

from typing import Any

import pandas as pd

from attnopt.report.context import Context
from attnopt.report.data import at_length
from attnopt.report.parts import formats
from attnopt.report.parts.tables import Column, Table, column, variant_column
from attnopt.statistics import STANDARD_ERRORS, Estimate

MOST, LEAST = 1.1, 0.5
"""A rival's state over the mechanism's, at most and at least: about equal bytes."""
AHEAD, BEHIND, LEVEL, UNKNOWN = "ahead", "behind", "level", "not measured"
MEASURES = {"kl": "KL", "recall": "recall"}
RULE = (
    f"Ahead: lower by more than {STANDARD_ERRORS} standard errors of the difference, the two taken as independent; "
    "they read the same documents and items, so that the rule is the stricter one. Recall is the KL of the answers’ "
    f"tokens, mean over sizes, then over tasks. A window is a rival where it holds at most {MOST} and at least "
    f"{LEAST} times the mechanism’s bytes."
)


def rivals(context: Context, length: int) -> pd.DataFrame:
    """A row per mechanism within the budget and window of about its bytes, one untrained and one trained at most.

    Columns: variant, state; rival, rival_state, rival_trained; kl and recall, the mechanism's less the rival's, with
    .._se and .._verdict; ahead: on both.
    """
    table = context.at(length)
    rows = [
        _compared(table, str(variant), str(rival))
        for variant in mechanisms(table).index
        for rival in _windows(table, str(variant))
    ]
    columns = ["variant", "state", "rival", "rival_state", "rival_trained", "ahead"]
    columns += [f"{key}{part}" for key in MEASURES for part in ("", "_se", "_verdict")]
    return pd.DataFrame(rows, columns=columns)


def mechanisms(table: pd.DataFrame) -> pd.DataFrame:
    """Of `Context.at`: those within the budget that are to be worth more than a window."""
    return table[
        (table["group"] == at_length.WITHIN) & (table["kind"] != at_length.WINDOW) & (table["role"] == "candidate")
    ]


def beaten(context: Context, length: int) -> list[str]:
    """The mechanisms that have a rival and are not ahead of every one of theirs."""
    rows = rivals(context, length)
    return [str(v) for v, group in rows.groupby("variant", sort=False) if not group["ahead"].all()]


def verdict(context: Context, length: int) -> str:
    """One sentence for the first screen: who is ahead of the window, or that the window wins."""
    rows = rivals(context, length)
    every = list(dict.fromkeys(rows["variant"]))
    where = f"at {formats.length(context.quality_length(length))} tokens"
    if not every:
        return (
            f"Whether a mechanism is worth more than a window with sinks of its bytes is not from this run: there is "
            f"none of both within the budget {where}."
        )
    lost = beaten(context, length)
    won = [v for v in every if v not in lost]
    windows = "the untrained and the trained window" if rows["rival_trained"].nunique() > 1 else "the window"
    count = formats.plural(len(every), "mechanism")
    if not won:
        return (
            f"**The window wins**: of {count} none is ahead of {windows} with sinks of about equal bytes on both KL "
            f"and recall {where}."
        )
    names = formats.listing(f"**{v}**" for v in won)
    rest = f"; {formats.listing(lost)} {'is' if len(lost) == 1 else 'are'} not" if lost else ""
    are = "is" if len(won) == 1 else "are"
    return f"{names} {are} ahead of {windows} with sinks of about equal bytes on KL and on recall {where}{rest}."


def sentences(context: Context, length: int) -> list[str]:
    """A sentence per mechanism, and one for those without a rival."""
    rows = rivals(context, length)
    out = [_sentence(str(v), group) for v, group in rows.groupby("variant", sort=False)]
    if alone := [str(v) for v in mechanisms(context.at(length)).index if v not in set(rows["variant"])]:
        out.append(f"No window of about equal bytes was run beside {formats.listing(alone)}.")
    return out


def _windows(table: pd.DataFrame, variant: str) -> list[str]:
    """The rivals of a mechanism: of windows of about its bytes the largest, untrained and trained."""
    state = table.loc[variant, "state"]
    windows = table[(table["kind"] == at_length.WINDOW) & (table["group"] != at_length.CONTROL)]
    windows = windows[windows["state"].between(LEAST * state, MOST * state)]
    found = []
    for trained in (False, True):
        alike = windows[windows["trained"].gt(0) == trained].sort_values(["state", "kl"], ascending=[False, True])
        found += [str(v) for v in alike.index[:1]]
    return found


def _compared(table: pd.DataFrame, variant: str, rival: str) -> dict[str, Any]:
    own, other = table.loc[variant], table.loc[rival]
    row = {"variant": variant, "state": own["state"], "rival": rival, "rival_state": other["state"]}
    row["rival_trained"] = bool(other["trained"] > 0)
    for key in MEASURES:
        ours, theirs = (Estimate(float(r[key]), float(r[f"{key}_se"])) for r in (own, other))
        gap = ours.minus(theirs)
        row |= {key: gap.value, f"{key}_se": gap.error, f"{key}_verdict": _verdict(ours, theirs)}
    return row | {"ahead": all(row[f"{key}_verdict"] == AHEAD for key in MEASURES)}


def _verdict(ours: Estimate, theirs: Estimate) -> str:
    if ours.value != ours.value or theirs.value != theirs.value:
        return UNKNOWN
    return AHEAD if theirs.clearly_above(ours) else BEHIND if ours.clearly_above(theirs) else LEVEL


def _sentence(variant: str, rows: pd.DataFrame) -> str:
    parts = []
    for row in rows.to_dict("records"):
        told = [f"{_told(row, key)} on {name}" for key, name in MEASURES.items()]
        training = "trained" if row["rival_trained"] else "untrained"
        parts.append(f"against {row['rival']} ({training}, {formats.size(row['rival_state'])}) {' and '.join(told)}")
    return f"**{variant}** ({formats.size(rows['state'].iloc[0])}): {'; '.join(parts)}."


def _told(row: dict[str, Any], key: str) -> str:
    if row[f"{key}_verdict"] == UNKNOWN:
        return UNKNOWN
    return f"{row[f'{key}_verdict']} ({formats.plus_minus(row[key], row[f'{key}_se'])})"


def table(context: Context, length: int) -> list[Table]:
    """Every comparison; none without a rival."""
    frame = rivals(context, length)
    if not len(frame):
        return []
    return [
        Table(
            name=f"rivals_{length}",
            title=f"Beside the window with sinks of about equal bytes at {formats.length(length)} tokens",
            columns=[
                variant_column(context.name),
                column("state", "state", formats.size),
                column("window", "rival", kind="text"),
                Column("is", lambda r: "trained" if r["rival_trained"] else "untrained", "text"),
                column("its state", "rival_state", formats.size),
                Column("KL less the window’s", lambda r: formats.plus_minus(r["kl"], r["kl_se"])),
                column("on KL", "kl_verdict", kind="text"),
                Column("recall less the window’s", lambda r: formats.plus_minus(r["recall"], r["recall_se"])),
                column("on recall", "recall_verdict", kind="text"),
            ],
            frame=frame.assign(length=context.quality_length(length)),
            command="dvc repro evaluate",
            note=RULE,
        )
    ]
