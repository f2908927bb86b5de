"""Which variant for which context length and memory: from quality measured within a factor of two of the length."""

from typing import Any

import pandas as pd

from attnopt.report.context import Answer, Context, absent
from attnopt.report.data import at_length, extrapolation
from attnopt.report.parts import formats
from attnopt.report.questions import extrapolated, rival
from attnopt.report.questions.choose_tables import choices, costs, eligible, where
from attnopt.report.questions.picture import picture
from attnopt.statistics import pareto

SLUG, QUESTION = "choose", "Which variant for which context length and memory?"
MUCH = 0.5
"""Share of the recommended one's KL under which a variant with more state is named for the least state, not the KL."""
COSTS = {"decode_ms": "decoding", "prefill_ms": "prefill", "state": "state"}


def answer(context: Context) -> Answer:
    if not len(context.ranked):
        return absent(SLUG, QUESTION, "no variant that competes was evaluated")
    lengths = [n for n in context.chosen if len(eligible(context, n))]
    tables = [costs(context, n) for n in list(context.costs)[::-1] if len(context.costs[n])]
    if not lengths:
        short, limits = _without_quality(context), _limits(context, [])
        return Answer(slug=SLUG, question=QUESTION, short=short, limits=limits, tables=tables)
    best = {n: recommended(context, n) for n in lengths}
    chosen = [choices(context, n, best[n]) for n in lengths[::-1]]
    said = opening(context, best)
    beside = [table for n in lengths[::-1] for table in rival.table(context, n)]
    return Answer(
        slug=SLUG,
        question=QUESTION,
        short=" ".join(said),
        opening=said,
        sentences=[*_others(context, best), *rival.sentences(context, lengths[-1]), *_front(context, lengths[-1])],
        limits=_limits(context, lengths),
        tables=[*chosen, *beside, *tables],
        picture=picture(context, best),
    )


def recommended(context: Context, length: int) -> str:
    """The closest to the teacher within the budget, of windows and of what is ahead of them; empty: there is none.

    A mechanism that has no window of about its bytes beside it is not held back by that.
    """
    table = eligible(context, length)
    table = table[(table["group"] == at_length.WITHIN) & ~table.index.isin(rival.beaten(context, length))]
    return str(table.index[0]) if len(table) else ""


def opening(context: Context, best: dict[int, str]) -> list[str]:
    """The three sentences of the first screen: what to choose, how it stands to the window, and what is not known."""
    length = max(best)
    return [_recommendation(context, length, best[length]), rival.verdict(context, length), _last(context, length)]


def _recommendation(context: Context, length: int, variant: str) -> str:
    if not variant:
        return f"At {where(context, length)}, no variant with {context.within} is closer to the teacher than none."
    row = context.at(length).loc[variant]
    near = context.quality_length(length)
    pieces = f" on pieces of {formats.length(near)}" if near != length else ""
    return (
        f"At {where(context, length)}, with {context.within}, choose **{variant}**: KL "
        f"{formats.plus_minus(row['kl'], row['kl_se'])}{pieces}, {quality_words(row)}"
        f"{_cost_words(context, length, row)}."
    )


def quality_words(row: Any) -> str:
    """Perplexity in the last bin, and copying where the teacher can."""
    low, high = at_length.interval_of(row, "last_ratio")
    interval = "" if formats.missing(low) else f" {formats.interval(formats.times(low), formats.times(high))}"
    text = (
        f"{formats.times(row['last_ratio'])}{interval} the teacher’s perplexity at positions "
        f"{formats.length(row['last_start'])} to {formats.length(row['last_stop'])}"
    )
    if formats.missing(row["copy"]):
        return text
    return f"{text}, {formats.times(row['copy'])} its copying over a gap of {row['copy_gap']:.0f}"


def _cost_words(context: Context, length: int, row: Any) -> str:
    names = {"share": "state", "decode_ms_ratio": "decoding time"}
    shown = [
        f"{formats.times(row[key])} softmax’s {name}" for key, name in names.items() if not formats.missing(row[key])
    ]
    other = context.budget.length not in (None, length)
    where = f"at {formats.length(length)} tokens " if other else ""
    return f"; {where}it takes {formats.listing(shown)}" if shown else ""


def _last(context: Context, length: int) -> str:
    """What more state buys, and what is not known."""
    unknown = f" {not_measured(context.unmeasured)}" if context.unmeasured else ""
    table = eligible(context, length)
    best, rest = table[table["group"] == at_length.WITHIN].head(1), table[table["group"] == at_length.BEYOND]
    if not len(rest):
        return unknown.strip() or "No variant with more state was evaluated."
    closer = rest[rest["kl"] < MUCH * best.iloc[0]["kl"]].sort_values("share") if len(best) else rest
    row = (closer if len(closer) else rest).iloc[0]
    kl = formats.plus_minus(row["kl"], row["kl_se"])
    than = "no closer" if len(best) and row["kl"] >= best.iloc[0]["kl"] else "closer"
    much = "much " if len(closer) and len(best) else ""
    state = f"KL {kl}, {formats.times(row['share'])} softmax’s state"
    return f"With more state, **{row.name}** is {much}{than} ({state}).{unknown}"


def not_measured(lengths: list[int]) -> str:
    shown = formats.listing(map(formats.length, lengths))
    it = "it" if len(lengths) == 1 else "them"
    return f"Quality at {shown} tokens was not measured: nothing is recommended for {it}."


def _without_quality(context: Context) -> str:
    """What can be said where no quality was measured near any length asked for."""
    best, block = str(context.ranked.index[0]), context.records.corpus.block
    asked = not_measured(context.unmeasured) if context.unmeasured else "Quality at length was not measured."
    return (
        f"{asked} On blocks of {block} tokens, as trained on, **{best}** is closest to the teacher "
        f"(KL {formats.estimate(context.kl(best))}); that says nothing of longer texts."
    )


def _others(context: Context, best: dict[int, str]) -> list[str]:
    """What is closer to the teacher than the recommended one within the budget, and why it is not taken; the choice at
    shorter lengths."""
    out = []
    for length, variant in sorted(best.items(), reverse=True):
        table = eligible(context, length)
        within = table[table["group"] == at_length.WITHIN]
        closer = list(within.index[: list(within.index).index(variant)]) if variant in within.index else within.index
        if len(closer):
            kl = [f"{v} ({formats.plus_minus(*within.loc[v, ['kl', 'kl_se']])})" for v in closer]
            at = formats.length(context.quality_length(length))
            out.append(f"Of lower KL at {at} tokens and not ahead of its window on both: {formats.listing(kl)}.")
        if length != max(best):
            out.append(_recommendation(context, length, variant))
    return out


def _front(context: Context, length: int) -> list[str]:
    table = eligible(context, length)
    axes = [key for key in ("kl", *COSTS) if table[key].notna().all()]
    front = table.index[pareto(table[axes].to_numpy())]
    shown = formats.listing([f"KL at {formats.length(context.quality_length(length))}", *(COSTS[k] for k in axes[1:])])
    names = formats.listing(f"**{v}**" for v in front)
    out = [f"Pareto front over {shown} at {where(context, length)}: {names}."]
    if len(beaten := table.index.difference(front, sort=False)):
        out.append(f"Off it, since some one variant is at least as good on all of these: {formats.listing(beaten)}.")
    timed = table["decode_ms_ratio"].dropna().astype(float)
    there = "there, extrapolated" if length in context.extrapolated else "there"
    faster = list(timed.index[timed < 1])
    if len(timed):
        named = f": {formats.listing(faster)}" if faster else ""
        count = formats.plural(len(timed), "variant")
        out.append(f"{len(faster)} of {count} decode faster than softmax {there}{named}.")
    return out


def _limits(context: Context, lengths: list[int]) -> list[str]:
    out = []
    if lengths:
        documents = _documents(context, context.quality_length(lengths[-1]))
        out.append(
            f"Quality speaks for lengths within a factor of {at_length.NEAR} of the pieces that it was measured on, "
            f"here {documents} of the test split; recall is of the sizes that were tested, whatever the length."
        )
    if context.unmeasured and context.costs:
        shown = formats.listing(map(formats.length, context.unmeasured))
        out.append(f"Of {shown} tokens only the cost is shown, if anything.")
    if context.extrapolated:
        out += extrapolated.limits(context.records, context.extrapolated)
    out += _unanswered(context)
    if lengths and len(left_out := _left_out(context, lengths[-1])):
        out.append(f"Left out, not measured there or no closer than no attention at all: {formats.listing(left_out)}.")
    return out


def _documents(context: Context, length: int) -> str:
    blocks = context.records.lengths.loc[context.records.lengths["length"] == length, "blocks"]
    return f"{formats.plural(int(blocks.median()), 'piece')} of {formats.length(length)} tokens"


def _left_out(context: Context, length: int) -> pd.Index:
    return context.ranked.index.difference(eligible(context, length).index, sort=False)


def _unanswered(context: Context) -> list[str]:
    """The lengths asked for whose costs the page does not have."""
    wanted = [n for n in context.params.lengths if n not in context.costs]
    far = [n for n in wanted if context.basis and n > extrapolation.REACH * context.basis.longest]
    out = []
    if near := [formats.length(n) for n in wanted if n not in far]:
        out.append(f"Asked for, and its cost not measured: {formats.listing(near)} tokens.")
    if far and context.basis:
        out.append(
            f"Asked for, and cost neither measured nor extrapolated: {formats.listing(map(formats.length, far))} "
            f"tokens, more than {extrapolation.REACH} times the longest length measured, "
            f"{formats.count(context.basis.longest)}."
        )
    return out
