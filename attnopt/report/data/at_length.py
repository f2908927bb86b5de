"""Quality at a context length, one row per variant, beside the state that it takes there."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from attnopt.core.errors import UserError
from attnopt.core.foreign import read_yaml
from attnopt.report.data import summary
from attnopt.report.data.read import Records

NEAR = 2
"""Quality speaks for lengths up to this factor from the one that it was measured at."""
SHARE = 0.125
"""Of softmax's state, what a variant may hold where params.yaml sets no other budget."""
WINDOW = "window"
"""The kind that stands beside every mechanism at equal bytes."""
WITHIN, BEYOND, CONTROL = "within", "beyond", "control"
"""A variant's group: by its state, or not competing."""
ROUNDING = 1e-3
BOUNDS = ["ppl_ratio", "ppl_ratio_low", "ppl_ratio_high"]


class Budget(NamedTuple):
    """What a variant may hold: a share of softmax's state, and the length at which it counts; None: any."""

    share: float
    length: int | None


def budget(records: Records) -> Budget:
    """What most trainings recorded, or else params.yaml's section `state`, or else SHARE at every length."""
    asked, told = _asked(records.settings), records.runs.reindex(columns=["state_budget", "state_length"])
    share, length = (next(iter(pd.to_numeric(told[key]).mode()), None) for key in told)
    share = asked.get("share") if share is None else share
    length = asked.get("length") if length is None else length
    return Budget(float(share) if share else SHARE, int(length) if length else None)


def _asked(settings: str) -> dict[str, Any]:
    """The section `state` of params.yaml; empty where there is none."""
    try:
        content = read_yaml(settings, "params.yaml")
    except UserError:
        return {}
    section = content.get("state") if isinstance(content, dict) else None
    return section if isinstance(section, dict) else {}


def nearest(records: Records, wanted: int) -> int | None:
    """The length whose quality speaks for the wanted one: within a factor of NEAR, the nearest; None: there is none."""
    apart = {int(n): abs(math.log(n / wanted)) for n in records.lengths["length"].unique()}
    near = [n for n in sorted(apart, key=lambda n: apart[n]) if apart[n] <= math.log(NEAR) + 1e-9]
    return near[0] if near else None


def quality(records: Records, length: int) -> pd.DataFrame:
    """One row per variant at a length that was measured, indexed by it: those within the budget first, best KL first.

    Columns: kl, kl_se (documents and seeds, as `summary.quality` has it), top1, ppl_ratio with .._low and .._high;
    last_ratio likewise, in the last bin of positions, last_start, last_stop; holds_to, the least over seeds; seeds;
    state, bytes; share, of softmax's state; copy with .._low, .._high and .._gap; recall and recall_se, as `recalled`;
    role, kind, trained (parameters), group.
    """
    rows = records.lengths[records.lengths["length"] == length]
    groups = rows.groupby("variant", sort=False)
    known = summary.pooled(rows, ["variant"], {"kl_forward": "kl_forward_se"}).set_index("variant")
    out = known.rename(columns={"kl_forward": "kl", "kl_forward_se": "kl_se"})
    out = out.join(groups[["top1_agreement", *BOUNDS]].mean()).rename(columns={"top1_agreement": "top1"})
    out["holds_to"], out["seeds"] = groups["holds_to"].min(), groups["seed"].nunique()
    out = out.join(_last(records, length)).join(copying(records, length)).join(recalled(records))
    out["state"] = _state(records, length).reindex(out.index)
    out["share"] = out["state"] / _softmax_state(records, length)
    trained = records.runs.groupby("variant")["trained_parameters"].mean()
    out["trained"] = trained.reindex(out.index)
    out["role"] = [records.role(str(v)) for v in out.index]
    out["kind"] = [records.variants[str(v)] for v in out.index]
    out["group"] = _groups(records, out)
    order = out["group"].map({WITHIN: 0, BEYOND: 1, CONTROL: 2})
    return out.assign(order=order).sort_values(["order", "kl"], kind="stable").drop(columns="order")


def competing(table: pd.DataFrame) -> pd.DataFrame:
    """Of `quality`: the candidates, and windows even where they are controls; best KL first."""
    return table[table["group"] != CONTROL].sort_values("kl", kind="stable")


def tests(records: Records) -> pd.DataFrame:
    """Recall by variant, task and size, means over seeds: the record's columns, kl_answer_se over items and seeds."""
    keys = ["variant", "task", "size"]
    means = ["tokens", "queries", "accuracy", "teacher_accuracy", "retention", "retention_low", "retention_high"]
    pooled = summary.pooled(records.recall, keys, {"kl_answer": "kl_answer_se"})
    return pooled.merge(records.recall.groupby(keys, sort=False)[means].mean().reset_index(), on=keys)


def recalled(records: Records) -> pd.DataFrame:
    """variant -> recall, recall_se: KL of the answers in nats, mean over sizes, then over tasks, with its error."""
    table = tests(records).assign(square=lambda t: t["kl_answer_se"] ** 2)
    sizes = table.groupby(["variant", "task"], sort=False)
    tasks = pd.DataFrame({"recall": sizes["kl_answer"].mean()})
    tasks["square"] = sizes["square"].sum(min_count=1) / sizes.size() ** 2
    each = tasks.groupby("variant", sort=False)
    errors = np.sqrt(each["square"].sum(min_count=1)) / each.size()
    return pd.DataFrame({"recall": each["recall"].mean(), "recall_se": errors})


def copying(records: Records, length: int) -> pd.DataFrame:
    """variant -> copy, copy_low, copy_high, copy_gap: retention at the gap nearest to a quarter of the length, of those
    where the teacher can."""
    table = tests(records)
    table = table[(table["task"] == "copy") & table["retention"].notna() & (table["size"] > 0)]
    names = {"retention": "copy", "retention_low": "copy_low", "retention_high": "copy_high", "size": "copy_gap"}
    if not len(table):
        return pd.DataFrame(columns=list(names.values()), dtype=float)
    gap = min(table["size"].unique(), key=lambda n: abs(math.log(4 * n / length)))
    return table[table["size"] == gap].set_index("variant")[list(names)].rename(columns=names)


def _last(records: Records, length: int) -> pd.DataFrame:
    """The last bin of positions: means over seeds."""
    rows = records.bins[records.bins["length"] == length]
    rows = rows[rows["stop"] == rows["stop"].max()]
    found = rows.groupby("variant", sort=False)[[*BOUNDS, "start", "stop"]].mean()
    return found.rename(columns={key: key.replace("ppl_ratio", "last_ratio") for key in BOUNDS}).rename(
        columns={"start": "last_start", "stop": "last_stop"}
    )


def _state(records: Records, length: int) -> pd.Series:
    rows = records.states[records.states["length"] == length]
    return rows.groupby("variant")["bytes"].mean()


def _softmax_state(records: Records, length: int) -> float:
    """Bytes at a length: of a variant of kind softmax, or else of the bench's baseline; NaN where neither is."""
    states = _state(records, length)
    own = states[[v for v in states.index if records.variants[str(v)] == "softmax"]]
    if len(own):
        return float(own.median())
    rows = [summary.bench_rows(records, level, "decode") for level in summary.levels(records)[:1]]
    beside = [r.loc[r["length"] == length, "baseline_state"].median() for r in rows]
    return float(beside[0]) if beside else math.nan


def _groups(records: Records, table: pd.DataFrame) -> list[str]:
    asked = budget(records)
    held = _counted(records, asked, table["share"])
    found = []
    for variant, row in table.iterrows():
        control = row["role"] == "leaks" or (row["role"] == "control" and row["kind"] != WINDOW)
        within = held[variant] <= asked.share * (1 + ROUNDING)
        found.append(CONTROL if control else WITHIN if within else BEYOND)
    return found


def _counted(records: Records, asked: Budget, here: pd.Series) -> pd.Series:
    """The share of softmax's state that the budget is about: at its own length where that is known, or else here."""
    found = here.copy()
    if asked.length is not None:
        there = _state(records, asked.length) / _softmax_state(records, asked.length)
        found = there.reindex(here.index).fillna(found)
    if "state_share" in records.runs:
        sized = pd.to_numeric(records.runs.set_index("variant")["state_share"]).groupby(level=0).mean()
        found = sized.reindex(here.index).fillna(found)
    return found


def unmeasured(records: Records, wanted: Iterable[int]) -> list[int]:
    """Those that no quality speaks for, rising."""
    return sorted({n for n in wanted if nearest(records, n) is None})


def interval_of(row: Any, key: str) -> tuple[float, float]:
    return float(row[f"{key}_low"]), float(row[f"{key}_high"])
