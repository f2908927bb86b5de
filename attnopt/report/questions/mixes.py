"""Which attention for which layer: the mixes that the search found, beside other ways to fill the same budget."""

from itertools import groupby

import pandas as pd

from attnopt.records.search import Cost, HeldOutRow, SearchRecord
from attnopt.report.context import Answer, Context, absent
from attnopt.report.parts import formats
from attnopt.report.parts.tables import Column, Table, column
from attnopt.report.questions import mix_figures
from attnopt.statistics import STANDARD_ERRORS, Estimate

SLUG = "mixes"
QUESTION = "Which attention for which layer, within a budget of state?"
WAYS = {
    "searched": "searched",
    "one": "one variant in all layers",
    "uniform": "two, evenly interleaved",
    "ends": "two, the larger first and last",
    "greedy": "greedy",
    "fewest_parameters": "fewest parameters",
    "random": "random",
    "rescored": "next best sums",
}
RIVALS = {"uniform": "two variants interleaved", "greedy": "the greedy mix"}
"""Those that the short answer speaks of."""
MEASURES = {"kl": "KL", "recall": "recall"}
COSTS: dict[Cost, str] = {"state": "state", "decode": "decoding time", "prefill": "prefill time"}
Budget = tuple[Cost, float]


def answer(context: Context) -> Answer:
    found = context.records.search
    if found is None:
        return absent(SLUG, QUESTION, "`attnopt search` left no record")
    told = [_found(found, budget) for budget in _budgets(found)]
    return Answer(
        slug=SLUG,
        question=QUESTION,
        short=" ".join(told[:1]),
        sentences=[*told[1:], *_rivals(found), _gap(found)],
        limits=[
            "Nothing of a mix is trained as a whole here: layers stand as transfer left them. What one is worth after "
            "training is in the rows of the students under `mixes` of params.yaml, where there are any.",
            "A mix is chosen on few pieces of the valid split; what is compared is the test split.",
        ],
        figures=mix_figures.figures(context, found, WAYS),
        tables=[_table(found)],
    )


def _budgets(found: SearchRecord) -> list[Budget]:
    shares: dict[Cost, list[float]] = {"state": found.budgets, "decode": found.decode, "prefill": found.prefill}
    return [(cost, share) for cost, of in shares.items() for share in of]


def _within(cost: Cost, share: float) -> str:
    return f"{formats.fraction(share)} of softmax’s {COSTS[cost]}"


def _found(found: SearchRecord, budget: Budget) -> str:
    """What stands where, and how good it is beside the rivals."""
    rows = {row.way: row for row in found.held_out if (row.cost, row.budget) == budget}
    best = rows["searched"]
    against = [f"{_beside(rows[way])} {name}" for way, name in RIVALS.items() if way in rows]
    beside = f": {formats.listing(against)}" if against else ""
    within = f"Within {_within(*budget)} at {formats.length(found.length)} tokens"
    return (
        f"{within} the search puts **{stretches(best.layers)}**, before any training as a whole at a KL of "
        f"{formats.plus_minus(best.kl, best.kl_se)} on text and "
        f"{formats.plus_minus(best.recall, best.recall_se)} on recalled values{beside}.{_clocked(best)}"
    )


def _clocked(row: HeldOutRow) -> str:
    """What a mix for a budget of time was predicted to take, and took."""
    if row.measured is None or row.predicted is None:
        return ""
    return f" It takes {formats.times(row.measured)} softmax’s time, {formats.times(row.predicted)} by its layers."


def _beside(rival: HeldOutRow) -> str:
    """How the searched mix stands to a rival, by the differences on the same texts."""
    words = {_verdict(more, error) for more, error in _differences(rival).values()}
    return f"{words.pop()} on both against" if len(words) == 1 else f"{_apart(rival)} against"


def _apart(rival: HeldOutRow) -> str:
    found = {MEASURES[key]: _verdict(*pair) for key, pair in _differences(rival).items()}
    return " and ".join(f"{word} on {name}" for name, word in found.items())


def _differences(rival: HeldOutRow) -> dict[str, tuple[float | None, float | None]]:
    return {"kl": (rival.more_kl, rival.more_kl_se), "recall": (rival.more_recall, rival.more_recall_se)}


def _verdict(more: float | None, error: float | None) -> str:
    """Of the searched mix, to which a rival adds so much."""
    if more is None or error is None or more == 0:
        return "level"
    known = Estimate(more, error)
    return "ahead" if known.clearly_above(0.0) else "behind" if Estimate(-more, error).clearly_above(0.0) else "level"


def _rivals(found: SearchRecord) -> list[str]:
    """Where the random mixes lie, whose spread says what choosing is worth."""
    out = []
    for budget in _budgets(found):
        mine = [row for row in found.mixes if (row.cost, row.budget) == budget]
        drawn = [row.total for row in mine if row.way == "random"]
        best = next(row.total for row in mine if row.way == "searched")
        if len(drawn) > 1:
            spread = pd.Series(drawn)
            out.append(
                f"At {_within(*budget)}, {len(drawn)} random mixes come to {formats.number(spread.mean())} in "
                f"all on the valid split (standard deviation {formats.number(spread.std())}, the best "
                f"{formats.number(spread.min())}), the searched one to {formats.number(best)}."
            )
    return out


def _gap(found: SearchRecord) -> str:
    """How sums of single scores stand to whole mixes: their order, and their size."""
    known = {(row.sums, row.of): row.value for row in found.spearman if row.value is not None}
    told = [
        f"{formats.fixed(known[sums, 'kl'])} in KL on text and {formats.fixed(known[sums, 'recall'])} on recalled "
        f"values by layers {sums} alone"
        for sums in ("replaced", "restored")
        if (sums, "kl") in known and (sums, "recall") in known
    ]
    order = f"sums of single scores rank the random mixes with Spearman {formats.listing(told)}" if told else ""
    times = f"mixes solved for come to {formats.times(found.gap)} their sum of single scores" if found.gap else ""
    text = "; ".join(filter(None, (order, times)))
    return f"{text[0].upper()}{text[1:]}." if text else "No sum of scores was held against a measured mix."


def stretches(layers: list[str]) -> str:
    """The variants by runs of layers: window in 0 to 2, based in 3."""
    parts, start = [], 0
    for name, run in groupby(layers):
        stop = start + len(list(run))
        parts.append(f"{name} in {start}" + (f" to {stop - 1}" if stop - start > 1 else ""))
        start = stop
    return ", ".join(parts)


def _table(found: SearchRecord) -> Table:
    rows = sorted(
        found.held_out, key=lambda row: (row.cost != "state", row.cost, row.budget, row.way != "searched", row.kl)
    )
    frame = pd.DataFrame([row.model_dump() for row in rows]).assign(
        layers=[" ".join(row.layers) for row in rows],
        told=[stretches(row.layers) for row in rows],
        group=[f"At most {_within(row.cost, row.budget)}" for row in rows],
        share=[row.bytes / found.softmax_bytes for row in rows],
    )
    timed = [column("time over softmax’s", "measured", formats.times)] if frame["measured"].notna().any() else []
    return Table(
        name="mixes",
        title="Mixes of the library’s layers on the test split",
        columns=[
            Column("chosen", lambda r: WAYS[r["way"]], "text"),
            column("layers", "told", kind="wide"),
            column("state over softmax’s", "share", formats.times),
            *timed,
            Column("KL", lambda r: formats.plus_minus(r["kl"], r["kl_se"])),
            Column("more than searched", lambda r: formats.plus_minus(r["more_kl"], r["more_kl_se"])),
            Column("KL of recalled values", lambda r: formats.plus_minus(r["recall"], r["recall_se"])),
            Column("more than searched", lambda r: formats.plus_minus(r["more_recall"], r["more_recall_se"])),
        ],
        frame=frame,
        command="dvc repro search",
        group="group",
        note=f"Nats per token, on pieces of {formats.length(found.length)} tokens and on key-value lists; errors of "
        "differences are over the same texts. Ahead or behind: by more than "
        f"{STANDARD_ERRORS} of them. Layers as transfer left them.",
    )
