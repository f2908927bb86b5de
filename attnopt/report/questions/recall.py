"""What is still recalled from far back, and at what state: copying, key-value lists, phone books, needles."""

from typing import Any

import pandas as pd

from attnopt.records.evaluate import TEACHER_CAN
from attnopt.report.context import ZERO, Answer, Context, absent
from attnopt.report.data import at_length
from attnopt.report.parts import formats
from attnopt.report.parts.figures import Axis, Figure, Panel, Rule, Series, Style, View, ticks
from attnopt.report.parts.tables import Column, Table, column, variant_column
from attnopt.report.questions.picture import LINES
from attnopt.statistics import margin

SLUG, QUESTION = "recall", "What is still recalled from far back, and at what state?"
TASKS = {
    "copy": ("copying", "a gap of {} tokens", "gap, tokens"),
    "pairs": ("key-value list", "{} pairs", "pairs"),
    "phone_book": ("phone book", "{} names", "names"),
    "needle": ("needle", "{} tokens of filler", "length, tokens"),
}
"""Task -> its name, its size in words, the axis of its sizes."""
CANNOT = "the teacher cannot"


def answer(context: Context) -> Answer:
    table = at_length.tests(context.records)
    competing = table[table["variant"].isin(_competing(context))]
    if not len(competing):
        return absent(SLUG, QUESTION, "no variant that competes was tested for recall")
    table = table.merge(_states(context), on="variant", how="left")
    return Answer(
        slug=SLUG,
        question=QUESTION,
        short=_short(context, table),
        sentences=[*_teacher(table), *_windows(context, table)],
        limits=_limits(context),
        figures=[*_by_state(context, table), _by_size(context, table)],
        tables=[*_tables(context, table), *_written(context)],
    )


def name(task: str, size: float) -> str:
    """A test in words: copying over a gap of 256 tokens."""
    kind, words, _ = TASKS[task]
    return f"{kind}, {words.format(formats.length(size))}"


def _competing(context: Context) -> list[str]:
    """Candidates, and windows even where they are controls."""
    kinds = context.records.variants
    return [v for v, kind in kinds.items() if v in context.records.candidates or kind == at_length.WINDOW]


def _states(context: Context) -> pd.DataFrame:
    """variant, state, share, group, trained, kind at the longest length measured."""
    measured = [int(n) for n in context.records.lengths["length"].unique()]
    columns = ["state", "share", "group", "trained", "kind"]
    if not measured:
        return pd.DataFrame(columns=["variant", *columns])
    return at_length.quality(context.records, max(measured))[columns].reset_index(names="variant")


def _short(context: Context, table: pd.DataFrame) -> str:
    """The best within the budget at each task's hardest size that the teacher can."""
    rows = table[table["variant"].isin(_competing(context)) & table["retention"].notna()]
    parts, grouped = [], bool(table["group"].notna().any())
    for task in TASKS:
        own = rows[rows["task"] == task]
        own = own[own["size"] == own["size"].max()]
        within = own[own["group"] == at_length.WITHIN] if grouped else own
        if len(within):
            best = within.sort_values(["retention", "kl_answer"], ascending=[False, True]).iloc[0]
            parts.append(f"{name(task, best['size'])}: **{best['variant']}** at {_retention(best)}")
    if not len(rows):
        can = f"This teacher passes no test of recall ({formats.percent(TEACHER_CAN)} right or more)"
        return f"{can}: only the KL of the answers is shown."
    if not parts:
        return f"No variant with {context.within} was tested where this teacher can."
    budget = f", with {context.within}," if grouped else ""
    return f"Of the teacher’s right answers{budget} most are kept by: {'; '.join(parts)}."


def _retention(row: Any) -> str:
    if formats.missing(row["retention"]):
        return CANNOT
    interval = f" {formats.interval(formats.fixed(row['retention_low']), formats.fixed(row['retention_high']))}"
    known = not formats.missing(row["retention_low"])
    return f"{formats.fixed(row['retention'])}{interval if known else ''}"


def _teacher(table: pd.DataFrame) -> list[str]:
    """What the teacher itself can."""
    own = table.drop_duplicates(["task", "size"])
    out = []
    for task, rows in own.groupby("task", sort=False):
        can = rows[rows["teacher_accuracy"] >= TEACHER_CAN].sort_values("size")
        shown = [f"{formats.length(r['size'])} ({formats.percent(r['teacher_accuracy'])})" for _, r in can.iterrows()]
        kind, _, axis = TASKS[str(task)]
        if shown:
            out.append(f"The teacher passes {kind}, {axis.split(',')[0]} {formats.listing(shown)}.")
        else:
            best = formats.percent(rows["teacher_accuracy"].max())
            out.append(f"This teacher cannot: {kind}, at best {best} right; only the KL of the answers is compared.")
    return out


def _windows(context: Context, table: pd.DataFrame) -> list[str]:
    """At each task's hardest size that the teacher can, what windows keep."""
    windows = table[(table["kind"] == at_length.WINDOW) & table["retention"].notna()]
    out = []
    for task, rows in windows.groupby("task", sort=False):
        far = rows[rows["size"] == rows["size"].max()]
        shown = [f"{r['variant']} {_retention(r)}" for _, r in far.iterrows()]
        out.append(f"Windows at {name(str(task), far['size'].iloc[0])}: {formats.listing(shown)}.")
    return out


def _limits(context: Context) -> list[str]:
    rows = context.records.recall
    few, many = (formats.count(end) for end in (rows["queries"].min(), rows["queries"].max()))
    queries = few if few == many else f"{few} to {many}"
    return [
        f"Retention, the student’s share of right answers over the teacher’s, is stated where the teacher has "
        f"{formats.percent(TEACHER_CAN)} right or more; its intervals are binomial, over {queries} answers. Items are "
        "the same for all, teacher-forced, and drawn from the corpus’s held-out text; what students write themselves "
        "stands apart."
    ]


def _tables(context: Context, table: pd.DataFrame) -> list[Table]:
    """Retention, and KL of the answers; a column per test."""
    tests = [(t, s) for t, s in table[["task", "size"]].drop_duplicates().itertuples(index=False)]
    tests.sort(key=lambda test: (list(TASKS).index(test[0]), test[1]))
    can = [test for test in tests if table.set_index(["task", "size"]).loc[[test], "retention"].notna().any()]
    shown = {"retention": ("Retention: right answers over the teacher’s", can, _retention)}
    shown["kl_answer"] = ("KL of the answers’ tokens, nats", tests, _kl)
    found = []
    for key, (title, columns, cell) in shown.items():
        if columns:
            found.append(_wide(context, table, key, title, columns, cell))
    return found


def _kl(row: Any) -> str:
    return formats.plus_minus(row["kl_answer"], row["kl_answer_se"])


def _wide(context: Context, table: pd.DataFrame, key: str, title: str, tests: list[Any], cell: Any) -> Table:
    rows = {(r["variant"], r["task"], r["size"]): r for r in table.to_dict("records")}
    states = _states(context)
    frame = pd.DataFrame({"variant": list(dict.fromkeys([*states["variant"], *table["variant"]]))})
    frame = frame[frame["variant"].isin(table["variant"])].merge(states[["variant", "share", "group"]], how="left")
    frame = frame.assign(shown_group=context.groups(frame))
    for task, size in tests:
        frame[f"{task} {size}"] = [rows.get((v, task, size), {}).get(key) for v in frame["variant"]]

    def column_of(task: str, size: int) -> Column:
        def text(row: Any) -> str:
            found = rows.get((row["variant"], task, size))
            return cell(found) if found else formats.MISSING

        return Column(name(task, size), text)

    return Table(
        name=f"recall_{key}",
        title=title,
        columns=[
            variant_column(context.name),
            column("state over softmax’s", "share", formats.times),
            *(column_of(*test) for test in tests),
        ],
        frame=frame,
        command="dvc repro evaluate",
        group="shown_group",
    )


def _written(context: Context) -> list[Table]:
    """Answers that the students wrote themselves."""
    rows = context.records.generated
    if not len(rows):
        return []
    keys = ["variant", "task", "size"]
    means = ["items", "accuracy", "teacher_accuracy", "retention", "retention_low", "retention_high"]
    frame = rows.groupby(keys, sort=False)[means].mean().reset_index()
    order = {v: i for i, v in enumerate(context.records.variants)}
    places = pd.DataFrame({"task": frame["task"].map(list(TASKS).index), "v": frame["variant"].map(order)})
    frame = frame.loc[places.assign(size=frame["size"]).sort_values(["task", "size", "v"]).index]
    frame = frame.assign(test=[name(t, s) for t, s in zip(frame["task"], frame["size"], strict=True)])
    return [
        Table(
            name="recall_written",
            title="Answers that the students wrote, through their decoding state",
            columns=[
                variant_column(context.name),
                column("right to the last character", "accuracy", formats.percent),
                column("the teacher", "teacher_accuracy", formats.percent),
                Column("retention", _retention),
                column("prompts", "items", formats.count),
            ],
            frame=frame,
            command="dvc repro sample",
            group="test",
            note=f"Greedy; retention where the teacher has {formats.percent(TEACHER_CAN)} right or more.",
        )
    ]


def _by_state(context: Context, table: pd.DataFrame) -> list[Figure]:
    """Recall against state, a view per test."""
    rows = table[table["state"].gt(0)]
    views = []
    for task in TASKS:
        for size in sorted(rows.loc[rows["task"] == task, "size"].unique(), reverse=True):
            own = rows[(rows["task"] == task) & (rows["size"] == size)]
            panels = [_state_panel(context, own, "retention")] if own["retention"].notna().any() else []
            views.append(View(TASKS[task][0], [*panels, _state_panel(context, own, "kl_answer")], _of(task, size)))
    if not views:
        return []
    return [
        Figure(
            name="recall_state",
            title="Recall against state",
            alt="Retention and KL of the answers of every variant against the bytes of its state.",
            caption="A point per variant; the dashed lines join windows with sinks. Retention is drawn where the "
            "teacher itself passes. Bars: 95 % intervals.",
            views=views,
            frame=rows.drop(columns=["group"]),
            command="dvc repro evaluate",
            columns=2,
            height=300,
        )
    ]


def _of(task: str, size: float) -> str:
    return TASKS[task][1].format(formats.length(size))


def _state_panel(context: Context, rows: pd.DataFrame, key: str) -> Panel:
    rows = _bounded(rows[rows[key].notna()].assign(kib=rows["state"] / 1024), key).sort_values("kib")
    series = []
    for trained, (label, dash) in LINES.items():
        own = rows[(rows["kind"] == at_length.WINDOW) & (rows["trained"].gt(0) == trained)]
        if own["kib"].nunique() > 1:
            series.append(Series(label, Style("grey", "none", dash), list(own["kib"]), list(own[key]), points=False))
    for variant, own in rows.groupby("variant", sort=False):
        ends = {"low": own["low"], "high": own["high"]}
        series.append(context.series(variant, own["kib"], own[key], line=False, label=True, **ends))
    x = Axis("state, KiB per sequence", log=True)
    return Panel(_title(key), x, Axis(_unit(key), log=key != "retention"), series, _rules(key))


def _by_size(context: Context, table: pd.DataFrame) -> Figure:
    """Recall against the gap, or the size of the list: a view per task."""
    views = []
    for task in [t for t in TASKS if (table["task"] == t).any()]:
        rows = table[table["task"] == task].sort_values("size")
        keys = ["retention", "kl_answer"] if rows["retention"].notna().any() else ["kl_answer"]
        views.append(View(TASKS[task][0], [_size_panel(context, rows, key, TASKS[task][2]) for key in keys]))
    return Figure(
        name="recall_size",
        title="Recall against the gap, or the size of the list",
        alt="Retention and KL of the answers of every variant against the gap or the size.",
        caption="Copying a passage after a gap of other text, and lists and needles by their size. Retention is drawn "
        "where the teacher itself passes. Bands: 95 % intervals.",
        views=views,
        frame=table,
        command="dvc repro evaluate",
        columns=2,
        height=300,
    )


def _size_panel(context: Context, rows: pd.DataFrame, key: str, axis: str) -> Panel:
    rows = _bounded(rows[rows[key].notna()], key)
    positive = bool((rows["size"] > 0).all())
    series = [
        context.series(v, own["size"], own[key], low=own["low"], high=own["high"])
        for v, own in rows.groupby("variant", sort=False)
    ]
    x = Axis(axis, log=positive, ticks=ticks(rows["size"]))
    return Panel(_title(key), x, Axis(_unit(key), log=key != "retention"), series, _rules(key))


def _bounded(rows: pd.DataFrame, key: str) -> pd.DataFrame:
    """With the interval of a measure; KL of the teacher itself is off the logarithmic axis."""
    if key == "retention":
        return rows.assign(low=rows["retention_low"], high=rows["retention_high"])
    rows = rows[rows[key] > ZERO]
    half = margin(rows["kl_answer_se"].fillna(0))
    return rows.assign(low=(rows[key] - half).clip(lower=rows[key] / 10), high=rows[key] + half)


def _title(key: str) -> str:
    return "Retention" if key == "retention" else "KL of the answers"


def _unit(key: str) -> str:
    return "right answers over the teacher’s" if key == "retention" else "nats per token"


def _rules(key: str) -> list[Rule]:
    return [Rule("y", 1.0, "the teacher")] if key == "retention" else []
