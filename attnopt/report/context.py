"""What every question is given, and what it gives back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from attnopt.report.data import at_length, extrapolation, summary
from attnopt.report.data.read import Records
from attnopt.report.params import ReportParams
from attnopt.report.parts import formats
from attnopt.report.parts.figures import SHAPES, Figure, Series, Style, numbered
from attnopt.report.parts.tables import Table
from attnopt.statistics import Estimate

CONTROL_LOOKS = {"softmax": Style("ink", "plus"), "none": Style("grey", "minus", "2 3")}
LEVELS = {"model": "whole model", "operation": "attention alone"}
KL = "KL(teacher ‖ student), nats per token"
ZERO = 1e-5
"""A KL under this is the teacher itself, and off every logarithmic axis."""
COSTS = [f"{phase}_ms{part}" for phase in ("prefill", "decode") for part in ("", "_ratio", "_baseline")]
COSTS += ["state", "state_ratio", "state_baseline"]
"""Columns of a cost that are there at every length."""
EXTRAPOLATED = "extrapolated_from"
"""The column of a download that says which measured lengths a cost was extrapolated from."""


@dataclass
class Context:
    """One run and what several questions need of it; made by `Context.of`.

    Attributes:
        records: the run's tables.
        params: the section `report` of params.yaml.
        quality: one row per variant on blocks as trained on, best first, as `summary.quality` has it.
        measured: context lengths whose costs are shown, in tokens, rising.
        extrapolated: those besides that were asked for and not measured.
        looks: one style per variant.
    """

    records: Records
    params: ReportParams
    quality: pd.DataFrame
    measured: list[int]
    extrapolated: list[int]
    looks: dict[str, Style]

    @classmethod
    def of(cls, records: Records, params: ReportParams) -> "Context":
        """What the records say, summarized for one split and the lengths asked for."""
        return cls(
            records=records,
            params=params,
            quality=summary.quality(records, params.split),
            measured=_measured(records, params.lengths),
            extrapolated=extrapolation.lengths(records, params.lengths),
            looks=_looks(records),
        )

    @property
    def lengths(self) -> list[int]:
        """Those that the page speaks of, rising: with costs, with quality, or with both."""
        asked = self.params.lengths or [int(n) for n in self.records.lengths["length"].unique()]
        known = [n for n in asked if at_length.nearest(self.records, n)]
        return sorted({*self.measured, *self.extrapolated, *known})

    @property
    def chosen(self) -> list[int]:
        """Of `lengths`, those to choose for: quality was measured within a factor of two."""
        return [n for n in self.lengths if at_length.nearest(self.records, n)]

    @property
    def unmeasured(self) -> list[int]:
        """The lengths shown or asked for that no quality speaks for, rising."""
        return at_length.unmeasured(self.records, {*self.lengths, *self.params.lengths})

    @property
    def main(self) -> int | None:
        """The length that the page opens with, the longest to choose for; None: quality at length was not measured."""
        return max(self.chosen, default=None)

    @cached_property
    def budget(self) -> at_length.Budget:
        """What a variant may hold to be compared with the others."""
        return at_length.budget(self.records)

    @cached_property
    def _at(self) -> dict[int, pd.DataFrame]:
        return {length: self._joined(length) for length in self.chosen}

    def at(self, length: int) -> pd.DataFrame:
        """At one of `chosen`, `at_length.quality` with the columns of `costs`; state and share are those there."""
        return self._at[length]

    def _joined(self, length: int) -> pd.DataFrame:
        near = at_length.nearest(self.records, length)
        assert near is not None, "ask for one of `chosen`"
        table = at_length.quality(self.records, near)
        costs = self.costs.get(length)
        if costs is None:
            costs = pd.DataFrame(columns=[*COSTS, "level"], dtype=float)
        beside = costs.drop(columns="state").reindex(table.index)
        there = costs["state"].astype(float).reindex(table.index)
        shares = costs["state_ratio"].astype(float).reindex(table.index)
        return table.assign(state=there.fillna(table["state"]), share=shares.fillna(table["share"])).join(beside)

    def quality_length(self, length: int) -> int:
        """The length that the quality at one of `chosen` was measured at."""
        near = at_length.nearest(self.records, length)
        assert near is not None, "ask for one of `chosen`"
        return near

    @property
    def on_blocks(self) -> str:
        return f"blocks of {self.records.corpus.block} tokens, as trained on"

    @property
    def within(self) -> str:
        """The budget in words: at most 1/8 of softmax's state."""
        at = f" at {formats.length(self.budget.length)} tokens" if self.budget.length else ""
        return f"at most {formats.fraction(self.budget.share)} of softmax’s state{at}"

    def groups(self, table: pd.DataFrame) -> list[str]:
        """The heading of each row's group, from its column `group`."""
        named = {at_length.WITHIN: self.within[0].upper() + self.within[1:]}
        named |= {at_length.BEYOND: "More state than that", at_length.CONTROL: "Controls"}
        return [named.get(group, "State not known") for group in table["group"]]

    @cached_property
    def costs(self) -> dict[int, pd.DataFrame]:
        """What every variant costs at these lengths, as `summary.cost` or `extrapolation.cost` has it."""
        found = {length: summary.cost_at(self.records, length) for length in self.measured}
        for length in self.extrapolated:
            cost = extrapolation.extrapolated_cost(self.records, length, self.params.resamples)
            found[length] = cost.assign(**{EXTRAPOLATED: formats.listing(self.basis.lengths if self.basis else [])})
        return dict(sorted(found.items()))

    @cached_property
    def basis(self) -> extrapolation.Basis | None:
        """What the extrapolated costs rest on."""
        return extrapolation.basis(self.records)

    @property
    def ranked(self) -> pd.DataFrame:
        """The variants that compete, best KL first: no control, none that leaks."""
        return self.quality[self.quality["role"] == "candidate"]

    @property
    def evaluated(self) -> pd.DataFrame:
        """A row per run on the report's split."""
        return self.records.quality[self.records.quality["split"] == self.params.split]

    def kl(self, variant: str) -> Estimate:
        """KL(teacher || student) in nats per token, mean over seeds, with its error from blocks and seeds."""
        row = self.quality.loc[variant]
        return Estimate(float(row["kl"]), float(row["kl_se"]))

    def worse_by(self, variant: str, than: str) -> Estimate:
        """Difference of two variants' KL, taken as independent: on shared blocks its error is an upper bound."""
        return self.kl(variant).minus(self.kl(than))

    def name(self, variant: str) -> str:
        """A variant's name as tables and legends show it."""
        return f"{variant} (leaks)" if variant in self.records.leaks else variant

    def names(self, variants: Sequence[Any] | pd.Index) -> str:
        """Several of them in a sentence."""
        return formats.listing(self.name(str(v)) for v in variants)

    def series(self, variant: Any, x: Any, y: Any, **options: Any) -> Series:
        """A variant's points in its own colour.

        Args:
            x, y: of the points, equally many.
            options: further fields of Series; columns of a table become lists.
        """
        options = {key: list(v) if isinstance(v, pd.Series) else v for key, v in options.items()}
        return Series(self.name(str(variant)), self.looks[str(variant)], list(x), list(y), **options)

    @property
    def teacher_name(self) -> str:
        """What the teacher is and where it came from: bundled, a hub's id, a path."""
        source = self.records.teacher.source
        return " ".join(str(source[key]) for key in ("source", "id", "path", "revision") if source.get(key))

    @property
    def hardware(self) -> str:
        """The machine that the bench's figures name."""
        table = self.records.environments
        rows = table[table["stage"] == "bench"].to_dict("records")
        return f"Measured on {'; '.join(dict.fromkeys(_machine(row) for row in rows))}." if rows else ""


@dataclass(kw_only=True)
class Answer:
    """One of the study's questions, answered by this run. All of its text is computed; **...** is bold.

    Attributes:
        slug: the anchor of its section.
        question: as the page asks it.
        short: the answer in one sentence, for the summary.
        sentences: the evidence.
        limits: what this run cannot say about it.
        figures, tables: what the sentences rest on.
        opening, picture: of the first question alone, what the page opens with: `short`, sentence by sentence, and the
            figure beside it.
    """

    slug: str
    question: str
    short: str
    sentences: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    opening: list[str] = field(default_factory=list)
    picture: Figure | None = None


def absent(slug: str, question: str, why: str) -> Answer:
    """A question that this run cannot answer."""
    return Answer(slug=slug, question=question, short=f"Not from this run: {why}.")


def off_scale(quality: pd.DataFrame) -> str:
    """Names what a logarithmic axis of KL cannot show."""
    zero = [str(v) for v in quality.index[quality["kl"] <= ZERO]]
    return f" {formats.listing(zero)} (KL under 0.00001) is off the scale." if zero else ""


def _measured(records: Records, wanted: list[int]) -> list[int]:
    """The lengths whose costs are shown: those wanted; or else the longest, and those at which quality was measured."""
    found = summary.highlighted(records, wanted)
    if wanted:
        return found
    benched = {n for level in summary.levels(records) for n in summary.measured_lengths(records, level)}
    return sorted({*found, *(benched & {int(n) for n in records.lengths["length"]})})


def _looks(records: Records) -> dict[str, Style]:
    """By place in params.yaml; controls are ink and grey, leaking ones crossed out."""
    looks: dict[str, Style] = {}
    for variant, kind in records.variants.items():
        if variant in records.leaks:
            looks[variant] = Style("leak", "cross", "1 4")
        else:
            taken = sum(look.colour.startswith("c") for look in looks.values())
            alike = sum(look.colour == "ink" for look in looks.values())
            if kind == "softmax" and alike:
                looks[variant] = Style("ink", SHAPES[alike % len(SHAPES)], "6 3")
            else:
                looks[variant] = CONTROL_LOOKS.get(kind) or numbered(taken)
    return looks


def _machine(row: dict[str, Any]) -> str:
    parts = [row.get("cpu"), row.get("device"), row.get("threads"), row.get("dtype")]
    cpu, device, threads, dtype = (None if part != part else part for part in parts)
    shown = [cpu, None if device in ("cpu", cpu) else device, threads and f"{threads:.0f} threads", dtype]
    return ", ".join(str(part) for part in shown if part)
