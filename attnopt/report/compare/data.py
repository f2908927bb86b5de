"""Several runs side by side: what differs in their params.yaml, and what became of every variant."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from attnopt.report.compare import runs
from attnopt.report.compare.runs import Run
from attnopt.report.context import Context
from attnopt.report.data import at_length, summary
from attnopt.report.parts import formats
from attnopt.report.parts.figures import Style
from attnopt.statistics import STANDARD_ERRORS, Estimate

MEASURES = ("kl", "ppl_ratio", "decode_ms", "state")
COSTS = ("prefill_ms", "decode_ms", "decode_ms_q1", "decode_ms_q3", "state", "level")


@dataclass
class Comparison:
    """Several runs beside each other. A variant has `moved` where one of MEASURES is not the same in all of them.

    Attributes:
        runs: two or more, in the order of the page.
    """

    runs: list[Run]

    @cached_property
    def differing(self) -> dict[str, list[Any]]:
        return runs.differing(self.runs)

    @cached_property
    def labels(self) -> list[str]:
        """What is particular to each run; its source where that is nothing, too much, or not unique."""
        sources = ["the workspace" if run.source == "." else run.source for run in self.runs]
        if not 0 < len(self.differing) <= 3:
            return sources
        found = [", ".join(f"{k}: {shown(v[i])}" for k, v in self.differing.items()) for i in range(len(sources))]
        return [
            f"{label} ({source})" if found.count(label) > 1 else label
            for label, source in zip(found, sources, strict=True)
        ]

    @cached_property
    def numeric(self) -> str | None:
        """The setting that alone differs, where it is a number in every run."""
        only = list(self.differing) if len(self.differing) == 1 else []
        return next((k for k in only if all(type(v) in (int, float) for v in self.differing[k])), None)

    @cached_property
    def quality_length(self) -> int | None:
        """The longest length that quality was measured at in every run; None: it is that of blocks as trained on."""
        return max(_shared(set(run.context.records.lengths["length"]) for run in self.runs), default=None)

    @cached_property
    def length(self) -> int | None:
        """The context length of the costs, measured in every run: the nearest to the quality's, or else the longest."""
        shared = _shared(_costed(run.context) for run in self.runs)
        quality = self.quality_length
        near = sorted(n for n in shared if _near(n, quality))
        if quality is not None and near:
            return min(near, key=lambda n: max(n, quality) / min(n, quality))
        return max(_shared(set(run.context.measured) for run in self.runs), default=None)

    @property
    def beside(self) -> bool:
        """Whether costs may stand beside quality: both are of about one length."""
        return self.length is not None and _near(self.length, self.quality_length)

    @property
    def on(self) -> str:
        """What quality is of."""
        if self.quality_length is not None:
            return f"pieces of {formats.length(self.quality_length)} tokens"
        blocks = dict.fromkeys(run.context.records.corpus.block for run in self.runs)
        return f"blocks of {formats.listing(blocks)} tokens"

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A row per variant and run: those that moved first, then as the runs have them."""
        parts = []
        for i, run in enumerate(self.runs):
            part = self._quality(run.context).reindex(columns=["kl", "kl_se", "ppl_ratio"])
            if self.length is not None:
                part = part.join(summary.cost_at(run.context.records, self.length), how="outer")
            part = part.reindex(columns=[*part.columns, *(c for c in COSTS if c not in part)])
            part["role"] = [run.context.records.role(str(v)) for v in part.index]
            parts.append(part.rename_axis("variant").reset_index().assign(run=i, label=self.labels[i]))
        table = pd.concat(parts, ignore_index=True)
        order = {
            v: i for i, v in enumerate(dict.fromkeys(v for run in self.runs for v in run.context.records.variants))
        }
        table = table.assign(
            still=~table["variant"].isin(_moved(table, len(self.runs))), place=table["variant"].map(order)
        )
        return table.sort_values(["still", "place", "run"]).drop(columns="place").reset_index(drop=True)

    def _quality(self, context: Context) -> pd.DataFrame:
        if self.quality_length is None:
            return context.quality
        return at_length.quality(context.records, self.quality_length)

    @property
    def moved(self) -> list[str]:
        return list(dict.fromkeys(self.frame[~self.frame["still"]]["variant"]))

    @property
    def looks(self) -> dict[str, Style]:
        return {variant: look for run in reversed(self.runs) for variant, look in run.context.looks.items()}

    @property
    def command(self) -> str:
        return shlex.join(["attnopt", "report", "--compare", *(run.source for run in self.runs)])

    @property
    def short(self) -> str:
        """What differs, and the best of all."""
        count = len(self.differing)
        what = f"in `{next(iter(self.differing))}` alone" if count == 1 else f"in {count} settings"
        start = (
            f"{len(self.runs)} runs that differ {what}." if count else f"{len(self.runs)} runs of the same params.yaml."
        )
        ranked = self.frame[(self.frame["role"] == "candidate") & self.frame["kl"].notna()]
        if not len(ranked):
            return f"{start} None of them has a candidate's KL."
        best = ranked.loc[ranked["kl"].idxmin()]
        alike = ranked[(ranked["variant"] == best["variant"]) & (ranked["kl"] == best["kl"])]
        where = "the same in every run" if len(alike) == len(self.runs) > 1 else f"with {best['label']}"
        return (
            f"{start} On {self.on} the lowest KL of a candidate is **{best['variant']}**’s {kl_words(best)}, {where}."
        )

    @property
    def sentences(self) -> list[str]:
        """A line per candidate that moved, and one for all that did not."""
        candidates = self.frame[self.frame["role"] == "candidate"]
        found = [
            _told(variant, candidates[candidates["variant"] == variant], len(self.runs), self.length)
            for variant in self.moved
        ]
        still = list(dict.fromkeys(self.frame[self.frame["still"]]["variant"]))
        return [*filter(None, found), *([f"The same in every run: {formats.listing(still)}."] if still else [])]

    @property
    def warnings(self) -> list[str]:
        found = []
        if keys := [key for key in self.differing if key.split(".")[0] in ("corpus", "teacher")]:
            found.append(f"The runs differ in {formats.listing(keys)}: their KL is not of the same text and teacher.")
        machines = list(dict.fromkeys(run.context.hardware for run in self.runs if run.context.hardware))
        if len(machines) > 1:
            found.append(f"Timings are of several machines or set-ups, not to be compared: {' '.join(machines)}")
        return found

    @property
    def limits(self) -> list[str]:
        """Why there is no figure over a setting, or no cost."""
        found = []
        if self.numeric is None:
            found.append(
                "No single number differs between the runs, so the figure has a row per run and no axis for it."
            )
        if self.length is None:
            found.append("No context length was measured in every run, so costs are not compared.")
        elif not self.beside:
            found.append(
                f"Quality is on {self.on}, costs are at {formats.length(self.length)}: neither speaks for the other."
            )
        return found

    def numbers(self, rows: pd.DataFrame) -> pd.DataFrame:
        """As the download has it: the settings that differ beside the numbers."""
        settings = {key: [shown(values[i]) for i in rows["run"]] for key, values in self.differing.items()}
        return rows.assign(**settings, source=[self.runs[i].source for i in rows["run"]]).drop(columns=["run", "still"])


def _shared(lengths: Iterable[set[int]]) -> set[int]:
    return set.intersection(*lengths)


def _costed(context: Context) -> set[int]:
    """Lengths whose costs were measured at any level."""
    records = context.records
    return {n for level in summary.levels(records) for n in summary.measured_lengths(records, level)}


def _near(length: int, other: int | None) -> bool:
    return other is not None and max(length, other) <= at_length.NEAR * min(length, other)


def _moved(table: pd.DataFrame, runs: int) -> list[str]:
    """Variants with a measure that changes, or that some run lacks."""
    groups = table.groupby("variant", sort=False)
    changed = (groups[list(MEASURES)].nunique(dropna=False) > 1).any(axis=1) | (groups.size() < runs)
    return list(changed.index[changed])


def _told(variant: str, rows: pd.DataFrame, runs: int, length: int | None) -> str:
    """One variant's KL and costs between the runs; nothing where they were not measured twice."""
    parts = []
    if rows["kl"].nunique() > 1:
        low, high = rows.loc[rows["kl"].idxmin()], rows.loc[rows["kl"].idxmax()]
        difference = Estimate(high["kl"], high["kl_se"]).minus(Estimate(low["kl"], low["kl_se"]))
        parts.append(
            f"KL is lowest with {low['label']}, {kl_words(low)}, and highest with {high['label']}, {kl_words(high)}"
        )
        if difference.error > 0:
            beyond = f"{'more than' if difference.clearly_above(0.0) else 'within'} {STANDARD_ERRORS} standard errors"
            parts[-1] += f"; the difference, {formats.estimate(difference)}, is {beyond}"
    for measure, what, show in (("decode_ms", "decoding", _milliseconds), ("state", "the state", formats.size)):
        if rows[measure].nunique() > 1:
            low, high = rows.loc[rows[measure].idxmin()], rows.loc[rows[measure].idxmax()]
            at = f"{what} at {formats.length(length or 0)} tokens takes"
            parts.append(f"{at} {show(low[measure])} with {low['label']}, {show(high[measure])} with {high['label']}")
            if measure == "decode_ms" and high["decode_ms_q1"] <= low["decode_ms_q3"]:
                parts[-1] += " (the quartiles overlap)"
    if 0 < len(rows) < runs:
        parts.append(f"only in {formats.listing(rows['label'])}")
    return f"**{variant}**: {'. '.join(part[0].upper() + part[1:] for part in parts)}." if parts else ""


def kl_words(row: Any) -> str:
    """A row's KL with its standard error."""
    return formats.plus_minus(row["kl"], row["kl_se"])


def _milliseconds(value: float) -> str:
    return f"{formats.number(value)} ms"


def shown(value: Any) -> str:
    """A setting as text."""
    return formats.MISSING if value is None else str(value)
