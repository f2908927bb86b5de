"""Is the simplest variant, the study's masks or else a plain window, the best at equal budget?"""

from dataclasses import dataclass

import pandas as pd

from attnopt.report.context import KL, ZERO, Answer, Context, absent, off_scale
from attnopt.report.data import at_length
from attnopt.report.parts import formats
from attnopt.report.parts.figures import Axis, Figure, Panel, Series, Style, one_view, row_height, thinned
from attnopt.statistics import STANDARD_ERRORS, Estimate

SLUG, QUESTION = "simplest", "Is the simplest variant really the best at equal budget?"


@dataclass
class Field:
    """Those that are compared, and on what.

    Attributes:
        every: a row per variant, kl and kl_se, controls too. ranked: those that compete, best KL first.
        runs: kl_forward of each. where: what the KL is of. simple: the simplest of those that compete.
    """

    every: pd.DataFrame
    ranked: pd.DataFrame
    runs: pd.DataFrame
    where: str
    simple: str | None

    def kl(self, variant: str) -> Estimate:
        row = self.every.loc[variant]
        return Estimate(float(row["kl"]), float(row["kl_se"]))


def answer(context: Context) -> Answer:
    field = _field(context)
    found = Answer(slug=SLUG, question=QUESTION, short=_short(field))
    if len(field.every):
        found.sentences = _gaps(field) + _controls(field) + _softmax_controls(context)
        found.limits = [f"KL here is on {field.where}.", *_budgets(context, field)]
        found.figures.append(_dots(context, field))
    if len(context.records.history):
        found.figures.append(_curves(context))
    return found


def _field(context: Context) -> Field:
    """At the length that the page opens with, those of the simplest one's group of state; on blocks where there is no
    quality at length."""
    if context.main is None:
        ranked, where = context.ranked, context.on_blocks
        return Field(context.quality, ranked, context.evaluated, where, _simplest(ranked))
    every, near = context.at(context.main), context.quality_length(context.main)
    candidates = every[every["role"] == "candidate"].sort_values("kl", kind="stable")
    simple = _simplest(candidates)
    groups = {at_length.WITHIN: context.within, at_length.BEYOND: "more state than the budget"}
    group = str(every.loc[simple, "group"]) if simple else at_length.WITHIN
    runs = context.records.lengths[context.records.lengths["length"] == near]
    where = f"pieces of {formats.length(near)} tokens, of variants with {groups[group]}"
    return Field(every, candidates[candidates["group"] == group], runs, where, simple)


def _simplest(ranked: pd.DataFrame) -> str | None:
    """Of masks, or else of trained windows."""
    kinds = ranked["kind"]
    return next((str(v) for kind in ("masks", "window") for v in kinds.index[kinds == kind]), None)


def _short(field: Field) -> str:
    ranked, simple = list(map(str, field.ranked.index)), field.simple
    if simple is None or len(ranked) < 2:
        return absent(SLUG, QUESTION, "it takes a masks or window variant and another to compare with").short
    kl, best = formats.estimate(field.kl(simple)), ranked[0]
    on = f"on {field.where}"
    if best == simple:
        verdict = _verdict(field, ranked[1], simple, "Yes")
        return f"{verdict}: **{simple}** has the lowest KL of {len(ranked)} ({kl}), {on}."
    lowest = f"**{best}** is lowest ({formats.estimate(field.kl(best))})"
    place = ranked.index(simple) + 1
    verdict = _verdict(field, simple, best, "No")
    return f"{verdict}: **{simple}** is number {place} of {len(ranked)} (KL {kl}), {lowest}, {on}."


def _verdict(field: Field, worse: str, better: str, word: str) -> str:
    return word if field.kl(worse).clearly_above(field.kl(better)) else "Not decided"


def _gaps(field: Field) -> list[str]:
    """How far the simplest, or else the second, lies above the best."""
    ranked, simple = list(map(str, field.ranked.index)), field.simple
    if simple is None or len(ranked) < 2:
        return []
    worse = ranked[1] if simple == ranked[0] else simple
    gap = field.kl(worse).minus(field.kl(ranked[0]))
    clear = f"{'more' if gap.clearly_above(0.0) else 'not more'} than {STANDARD_ERRORS} standard errors"
    return [f"{worse} lies {formats.estimate(gap)} nats above {ranked[0]}, {clear}."]


def _controls(field: Field) -> list[str]:
    """How the variants stand to no attention and to a plain window."""
    out = []
    for control, row in field.every[field.every["kind"].isin(["none", "window"])].iterrows():
        lower = [str(v) for v in field.ranked.index[field.ranked["kl"] < row["kl"]]]
        below = formats.listing(lower) if lower else "nothing that competes"
        out.append(f"{control}: KL {formats.plus_minus(row['kl'], row['kl_se'])}; below it: {below}.")
    return out


def _softmax_controls(context: Context) -> list[str]:
    """What training the teacher's own attention buys, and what its attention weights are worth."""
    runs = context.records.runs.drop_duplicates("variant").set_index("variant")
    trained = context.quality[context.quality["role"].eq("control") & context.quality["trained"].gt(0)]
    out = []
    for control, row in trained[trained["kind"] == "softmax"].iterrows():
        anew = runs.loc[control, "start"] == "random"
        out.append(_drawn_anew(context, str(control)) if anew else _teacher_trained(str(control), row))
    return out


def _teacher_trained(control: str, row: pd.Series) -> str:
    own, teachers = formats.number(row["ppl_token"]), formats.number(row["teacher_ppl_token"])
    change = "lower" if row["ppl_ratio"] < 1 else "higher" if row["ppl_ratio"] > 1 else "the same"
    kl = formats.plus_minus(row["kl"], row["kl_se"])
    return (
        f"{control}, the teacher itself trained on {formats.millions(row['tokens'])} tokens: perplexity {own} per "
        f"token against {teachers} before, {change} ({formats.times(row['ppl_ratio'])}), at KL {kl} to it, on blocks."
    )


def _drawn_anew(context: Context, control: str) -> str:
    """How many of those that start from the teacher's weights end closer to it."""
    own, others = context.kl(control), [context.kl(str(v)) for v in context.ranked.index]
    lower = [kl for kl in others if own.clearly_above(kl)]
    higher = [kl for kl in others if kl.clearly_above(own)]
    return (
        f"{control}, softmax with attention weights drawn anew: KL {formats.estimate(own)} after its "
        f"training, on blocks; by more than {STANDARD_ERRORS} standard errors {len(lower)} of "
        f"{formats.plural(len(others), 'variant')} that compete end closer to the teacher, {len(higher)} farther off."
    )


def _budgets(context: Context, field: Field) -> list[str]:
    """Equal or not, as the records have it."""
    out = []
    ranked = context.quality.reindex(field.ranked.index)
    ranked = ranked[ranked["trained"] > 0]
    for key, what in (("tokens", "training tokens"), ("train", "weights that train")):
        groups = ranked[key].dropna().groupby(ranked[key])
        if len(groups) > 1:
            parts = [f"{formats.listing(g.index)}: {v if key == 'train' else formats.count(v)}" for v, g in groups]
            out.append(f"Budgets were not equal, {what} differ: {'; '.join(parts)}.")
    tokens = ranked["tokens"].dropna()
    if not out and len(tokens):
        out.append(f"Equal budget: {formats.count(tokens.iloc[0])} training tokens each.")
    if len(single := context.quality.index[context.quality["seeds"] == 1]):
        out.append(f"One run, no spread across seeds, errors over blocks alone: {context.names(single)}.")
    return out


def _dots(context: Context, field: Field) -> Figure:
    shown = field.every[field.every["kl"] > ZERO]
    names = [context.name(str(v)) for v in shown.index]
    series: list[Series] = []
    for variant, row in shown.iterrows():
        name, known = context.name(str(variant)), Estimate(row["kl"], row["kl_se"])
        low, high = known.interval
        notes = [f"mean of {formats.plural(int(row['seeds']), 'run')}"]
        own = field.runs[field.runs["variant"] == variant]
        runs = context.series(variant, own["kl_forward"], [name] * len(own), notes=[f"seed {s}" for s in own["seed"]])
        runs.style, runs.line = Style(runs.style.colour, "tick"), False
        dot = context.series(variant, [known.value], [name], low=[low], high=[high], along="x", notes=notes)
        dot.line = False
        series += [runs, dot]
    return Figure(
        name="quality",
        title="KL of every variant",
        alt=f"KL with its interval for {formats.listing(names)}.",
        caption=f"On {field.where.split(', of')[0]}. Marks: mean over seeds with a 95 % interval (blocks and seeds); "
        f"ticks: single runs.{off_scale(field.every)}",
        views=one_view(Panel("", Axis(KL, log=True), Axis("", categories=names), series)),
        frame=field.every.reset_index(names="variant"),
        command="dvc repro evaluate",
        columns=1,
        height=row_height(len(names)),
    )


def _curves(context: Context) -> Figure:
    history = context.records.history
    panels = []
    for key, title in (("kl", "Training"), ("valid_kl", "Validation")):
        rows = history[history[key] > ZERO].groupby("variant", sort=False)
        series = [_curve(context, str(v), group, key) for v, group in rows]
        panels.append(Panel(title, Axis("tokens trained on"), Axis("KL, nats per token", log=True), series))
    return Figure(
        name="training",
        title="Training curves",
        alt="Training and validation KL of every variant over the tokens trained on.",
        caption="Mean over seeds; the band runs from the lowest to the highest seed. Training KL is drawn where a "
        "phase computes it, validation KL in every phase.",
        views=one_view(*panels),
        frame=history.drop(columns=["kind", "control"]),
        command="dvc repro distill",
        columns=2,
        height=300,
    )


def _curve(context: Context, variant: str, rows: pd.DataFrame, key: str) -> Series:
    by_tokens = thinned(rows.groupby("tokens")[key].agg(["mean", "min", "max"]).reset_index())
    low, high, points = by_tokens["min"], by_tokens["max"], key == "valid_kl"
    return context.series(variant, by_tokens["tokens"], by_tokens["mean"], low=low, high=high, points=points)
