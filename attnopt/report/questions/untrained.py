"""From which state on distillation pays: the best distilled variant beside the best that no step was trained of."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pandas as pd

from attnopt.report.context import ZERO, Answer, Context, absent, off_scale
from attnopt.report.data import at_length
from attnopt.report.parts import formats
from attnopt.report.parts.figures import SHAPES, Axis, Figure, Panel, Rule, Series, Style, one_view, ordered
from attnopt.report.parts.tables import Column, Table, column
from attnopt.report.questions.rival import MOST
from attnopt.statistics import STANDARD_ERRORS, Estimate, margin

SLUG, QUESTION = "untrained", "From which state on does distillation pay?"
GROUPS = {"distilled": ordered(0, 2), "free": ordered(1, 2)}
"""The two groups, and what is drawn of each."""
NAMES = {"distilled": "distilled", "free": "without training"}
AHEAD, BEHIND, LEVEL = "distilled ahead", "without training ahead", "not decided"
ALONE = {"distilled": "only distilled ones", "free": "only ones without training"}


def answer(context: Context) -> Answer:
    if context.main is None:
        return absent(SLUG, QUESTION, "quality at length was not measured")
    table = compared(context.at(context.main))
    counts = table["training"].value_counts()
    if len(counts) < len(GROUPS):
        lacking = formats.listing(f"no variant {NAMES[group]}" for group in GROUPS if group not in counts)
        return absent(SLUG, QUESTION, f"{lacking} was evaluated at length with its state known")
    found = steps(table)
    return Answer(
        slug=SLUG,
        question=QUESTION,
        short=_short(context, found),
        sentences=[*_within(context, table), *_alone(found)],
        limits=_limits(context, table),
        figures=[_figure(context, table)],
        tables=[_table(context, found)],
    )


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """Of `Context.at`, those that compete and whose KL, state and training are known, best KL first.

    Returns: its rows with the column training, a key of GROUPS: free where no step was trained.
    """
    known = table[(table["group"] != at_length.CONTROL) & table[["kl", "share", "trained"]].notna().all(axis=1)]
    training = ["distilled" if trained > 0 else "free" for trained in known["trained"]]
    return known.assign(training=training).sort_values("kl", kind="stable")


def steps(table: pd.DataFrame) -> pd.DataFrame:
    """Who is the best of each group within a state, a row per state from which that changes, rising.

    States that differ by less than a factor of MOST count as the largest of them.

    Args:
        table: of `compared`.

    Returns: share, of softmax's state, and until, the next row's, NaN in the last; of each group its best at or below
        it with .._kl, .._kl_se and .._share, None and NaN where it has none; gap, of KL, distilled less free, with
        gap_se; verdict.
    """
    rows: list[dict[str, Any]] = []
    for share in _states(table["share"]):
        row = {"share": share} | _best(table[table["share"] <= share])
        if not rows or any(row[group] != rows[-1][group] for group in GROUPS):
            rows.append(row)
    found = pd.DataFrame(rows)
    return found.assign(until=found["share"].shift(-1))


def _states(shares: pd.Series) -> list[float]:
    """The distinct ones, rising, each the largest of those that are about equal."""
    found: list[list[float]] = []
    for share in sorted(shares):
        if found and share <= MOST * found[-1][0]:
            found[-1].append(share)
        else:
            found.append([share])
    return [alike[-1] for alike in found]


def _best(table: pd.DataFrame) -> dict[str, Any]:
    """The best of each group of these, best KL first, and how they compare."""
    row: dict[str, Any] = {}
    kl = {}
    for group in GROUPS:
        own = table[table["training"] == group].head(1)
        row[group] = str(own.index[0]) if len(own) else None
        values = own[["kl", "kl_se", "share"]].iloc[0] if len(own) else dict.fromkeys(("kl", "kl_se", "share"))
        row |= {f"{group}_{key}": float("nan") if v is None else float(v) for key, v in dict(values).items()}
        kl[group] = Estimate(row[f"{group}_kl"], row[f"{group}_kl_se"])
    gap = kl["distilled"].minus(kl["free"])
    return row | {"gap": gap.value, "gap_se": gap.error, "verdict": _verdict(row, kl["distilled"], kl["free"])}


def _verdict(row: dict[str, Any], distilled: Estimate, free: Estimate) -> str:
    present = [group for group in GROUPS if row[group] is not None]
    if len(present) == 1:
        return ALONE[present[0]]
    return AHEAD if free.clearly_above(distilled) else BEHIND if distilled.clearly_above(free) else LEVEL


def _runs(found: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Verdict, states in words and rows, of consecutive steps with one verdict."""
    for verdict, group in groupby(found.to_dict("records"), key=lambda row: row["verdict"]):
        rows = pd.DataFrame(list(group))
        first, until = rows["share"].iloc[0], rows["until"].iloc[-1]
        start = f"from {_times(first)}"
        yield str(verdict), f"{start} on" if until != until else f"{start} to under {_times(until)}", rows


def _short(context: Context, found: pd.DataFrame) -> str:
    states: dict[str, list[str]] = {}
    names: dict[str, list[str]] = {}
    for verdict, words, rows in _runs(found):
        states.setdefault(verdict, []).append(words)
        names.setdefault(verdict, []).extend(rows["distilled" if verdict == AHEAD else "free"])
    pays = "nowhere clearly"
    if AHEAD in states:
        pays = f"{formats.listing(states[AHEAD])} ({_bold(names[AHEAD])})"
    parts = [f"distillation pays {pays}"]
    if BEHIND in states:
        ahead = f"{'is' if len(set(names[BEHIND])) == 1 else 'are'} ahead {formats.listing(states[BEHIND])}"
        parts.append(f"{_bold(names[BEHIND])}, without training, {ahead}")
    if LEVEL in states:
        parts.append(f"not decided {formats.listing(states[LEVEL])}")
    where = f"at {formats.length(context.quality_length(context.main or 0))} tokens"
    return f"By state over softmax’s, {where}: {'; '.join(parts)}."


def _times(share: float) -> str:
    """Three digits: states near a budget differ in the third."""
    return formats.MISSING if formats.missing(share) else f"{formats.number(share)}×"


def _bold(names: list[str]) -> str:
    return formats.listing(f"**{name}**" for name in dict.fromkeys(names))


def _within(context: Context, table: pd.DataFrame) -> list[str]:
    """The best of each group within the budget."""
    within = context.within[0].upper() + context.within[1:]
    row = _best(table[table["group"] == at_length.WITHIN])
    told = [_told(row, group) for group in GROUPS if row[group] is not None]
    if len(told) < len(GROUPS):
        return [f"{within} there is nothing to compare: {told[0] if told else 'no variant'} alone."]
    verdict = {AHEAD: "the distilled one is ahead", BEHIND: "the one without training is ahead", LEVEL: LEVEL}
    gap = formats.plus_minus(row["gap"], row["gap_se"])
    return [f"{within}: {' and '.join(told)}, difference {gap}: {verdict[row['verdict']]}."]


def _told(row: dict[str, Any], group: str) -> str:
    kl = formats.plus_minus(row[f"{group}_kl"], row[f"{group}_kl_se"])
    return f"the best {NAMES[group]} is **{row[group]}** (KL {kl}, {_times(row[f'{group}_share'])})"


def _alone(found: pd.DataFrame) -> list[str]:
    """The states at which there is nothing of one group."""
    return [
        f"{words[0].upper()}{words[1:]} there are {verdict}."
        for verdict, words, _ in _runs(found)
        if verdict in ALONE.values()
    ]


def _limits(context: Context, table: pd.DataFrame) -> list[str]:
    counts = table["training"].value_counts()
    shown = " and ".join(f"{counts[group]} {NAMES[group]}" for group in GROUPS)
    limits = [
        f"Ahead: a lower KL by more than {STANDARD_ERRORS} standard errors of the difference, the two taken as "
        "independent; they read the same documents, so that the rule is the stricter one. The best of a group is "
        f"chosen by the same KL, which flatters the larger group: {shown}. States within a factor of {MOST} count as "
        "one."
    ]
    every = context.at(context.main or 0)
    every = every[every["group"] != at_length.CONTROL]
    if unknown := [str(v) for v in every.index.difference(table.index, sort=False)]:
        limits.append(f"Left out, as KL, state or training is not known: {formats.listing(unknown)}.")
    return limits


def _figure(context: Context, table: pd.DataFrame) -> Figure:
    at = formats.length(context.quality_length(context.main or 0))
    drawn = table[(table["kl"] > ZERO) & table["share"].gt(0)]
    half = margin(drawn["kl_se"].fillna(0))
    drawn = drawn.assign(low=(drawn["kl"] - half).clip(lower=drawn["kl"] / 10), high=drawn["kl"] + half)
    series = [_envelope(drawn, group) for group in GROUPS]
    for variant, row in drawn.sort_values("share").iterrows():
        among = list(drawn.index[drawn["training"] == row["training"]]).index(variant)
        style = Style(GROUPS[row["training"]].colour, SHAPES[among % len(SHAPES)])
        series.append(_point(context.name(str(variant)), style, row))
    rules = [Rule("x", context.budget.share, formats.fraction(context.budget.share)), Rule("x", 1.0, "softmax")]
    x, y = Axis("state over softmax’s", log=True), Axis("KL, nats per token", log=True)
    return Figure(
        name="without_training",
        title="Distilled and without training, by state",
        alt="KL to the teacher of every variant against its share of softmax's state, and the best of both groups.",
        caption=f"KL on pieces of {at} tokens, test split; down and left is better. Lines: the best at or below that "
        f"state; bars: 95 % intervals. Controls are left out.{off_scale(table)}",
        views=one_view(Panel("", x, y, series, rules)),
        frame=table.rename_axis("variant").reset_index()[
            ["variant", "training", "kind", "state", "share", "kl", "kl_se", "last_ratio"]
        ],
        command="dvc repro distill evaluate",
        columns=1,
        height=340,
        legend="below",
    )


def _point(name: str, style: Style, row: Any) -> Series:
    x, y, notes = [row["share"]], [row["kl"]], [NAMES[row["training"]]]
    return Series(name, style, x, y, [row["low"]], [row["high"]], line=False, label=True, notes=notes)


def _envelope(drawn: pd.DataFrame, group: str) -> Series:
    """The lowest KL of a group at or below each state, as stairs up to the largest state drawn."""
    own = drawn[drawn["training"] == group].sort_values("share")
    x, y = list(own["share"]), list(own["kl"].cummin())
    ends = [*x[1:], drawn["share"].max()]
    stairs = [point for a, b, level in zip(x, ends, y, strict=True) for point in ((a, level), (b, level))]
    look = Style(GROUPS[group].colour, "none", GROUPS[group].dash)
    return Series(f"best {NAMES[group]}", look, [a for a, _ in stairs], [b for _, b in stairs], points=False)


def _table(context: Context, found: pd.DataFrame) -> Table:
    def of(group: str) -> list[Column]:
        def name(row: Any) -> str:
            return formats.MISSING if row[group] is None else context.name(row[group])

        def kl(row: Any) -> str:
            return formats.plus_minus(row[f"{group}_kl"], row[f"{group}_kl_se"])

        return [Column(f"best {NAMES[group]}", name, "text"), Column("its KL", kl)]

    return Table(
        name="without_training",
        title="The best distilled and the best without training, by state",
        columns=[
            column("state over softmax’s, from", "share", _times),
            column("to under", "until", _times),
            *of("distilled"),
            *of("free"),
            Column("difference", lambda r: formats.plus_minus(r["gap"], r["gap_se"])),
            column("verdict", "verdict", kind="text"),
        ],
        frame=found,
        command="dvc repro distill evaluate",
        note="A row where the best of either group changes. KL in nats per token, ± one standard error.",
    )
