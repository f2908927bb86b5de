"""Is the simplest variant, the study's masks or else a plain window, the best at equal budget?"""

import pandas as pd

from attnopt.report.context import KL, ZERO, Answer, Context, absent, off_scale
from attnopt.report.parts import formats
from attnopt.report.parts.figures import Axis, Figure, Panel, Series, Style, one_view, row_height, thinned
from attnopt.statistics import STANDARD_ERRORS, Estimate

SLUG, QUESTION = "simplest", "Is the simplest variant really the best at equal budget?"


def answer(context: Context) -> Answer:
    found = Answer(slug=SLUG, question=QUESTION, short=_short(context))
    if len(context.quality):
        found.sentences = _gaps(context) + _controls(context) + _softmax_controls(context)
        found.limits = _budgets(context)
        found.figures.append(_dots(context))
    if len(context.records.history):
        found.figures.append(_curves(context))
    return found


def _simplest(context: Context) -> str | None:
    kinds = context.ranked["kind"]
    return next((str(v) for kind in ("masks", "window") for v in kinds.index[kinds == kind]), None)


def _short(context: Context) -> str:
    ranked, simple = list(map(str, context.ranked.index)), _simplest(context)
    if simple is None or len(ranked) < 2:
        return absent(SLUG, QUESTION, "it takes a masks or window variant and another to compare with").short
    kl, best = formats.estimate(context.kl(simple)), ranked[0]
    if best == simple:
        return f"{_verdict(context, ranked[1], simple, 'Yes')}: **{simple}** has the lowest KL of {len(ranked)} ({kl})."
    lowest = f"**{best}** is lowest ({formats.estimate(context.kl(best))})"
    place = ranked.index(simple) + 1
    verdict = _verdict(context, simple, best, "No")
    return f"{verdict}: **{simple}** is number {place} of {len(ranked)} (KL {kl}); {lowest}."


def _verdict(context: Context, worse: str, better: str, word: str) -> str:
    return word if context.kl(worse).clearly_above(context.kl(better)) else "Not decided"


def _gaps(context: Context) -> list[str]:
    """How far the simplest, or else the second, lies above the best."""
    ranked, simple = list(map(str, context.ranked.index)), _simplest(context)
    if simple is None or len(ranked) < 2:
        return []
    worse = ranked[1] if simple == ranked[0] else simple
    gap = context.worse_by(worse, ranked[0])
    clear = f"{'more' if gap.clearly_above(0.0) else 'not more'} than {STANDARD_ERRORS} standard errors"
    return [f"{worse} lies {formats.estimate(gap)} nats above {ranked[0]}, {clear}."]


def _controls(context: Context) -> list[str]:
    """How the variants stand to no attention and to a plain window."""
    out = []
    for control, row in context.quality[context.quality["kind"].isin(["none", "window"])].iterrows():
        lower = [str(v) for v in context.ranked.index[context.ranked["kl"] < row["kl"]]]
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
        f"token against {teachers} before, {change} ({formats.times(row['ppl_ratio'])}), at KL {kl} to it."
    )


def _drawn_anew(context: Context, control: str) -> str:
    """How many of those that start from the teacher's weights end closer to it."""
    own, others = context.kl(control), [context.kl(str(v)) for v in context.ranked.index]
    lower = [kl for kl in others if own.clearly_above(kl)]
    higher = [kl for kl in others if kl.clearly_above(own)]
    return (
        f"{control}, softmax with attention weights drawn anew: KL {formats.estimate(own)} after its "
        f"training; by more than {STANDARD_ERRORS} standard errors {len(lower)} of "
        f"{formats.plural(len(others), 'variant')} that compete end closer to the teacher, {len(higher)} farther off."
    )


def _budgets(context: Context) -> list[str]:
    """Equal or not, as the records have it."""
    out = []
    for key, what in (("tokens", "training tokens"), ("train", "weights that train")):
        groups = context.ranked[key].dropna().groupby(context.ranked[key])
        if len(groups) > 1:
            parts = [f"{formats.listing(g.index)}: {v if key == 'train' else formats.count(v)}" for v, g in groups]
            out.append(f"Budgets were not equal, {what} differ: {'; '.join(parts)}.")
    tokens = context.ranked["tokens"].dropna()
    if not out and len(tokens):
        out.append(f"Equal budget: {formats.count(tokens.iloc[0])} training tokens each.")
    if len(single := context.quality.index[context.quality["seeds"] == 1]):
        out.append(f"One run, no spread across seeds, errors over blocks alone: {context.names(single)}.")
    return out


def _dots(context: Context) -> Figure:
    shown = context.quality[context.quality["kl"] > ZERO]
    names = [context.name(str(v)) for v in shown.index]
    series: list[Series] = []
    for variant, row in shown.iterrows():
        name, known = context.name(str(variant)), Estimate(row["kl"], row["kl_se"])
        low, high = known.interval
        notes = [f"mean of {formats.plural(int(row['seeds']), 'run')}"]
        own = context.evaluated[context.evaluated["variant"] == variant]
        runs = context.series(variant, own["kl_forward"], [name] * len(own), notes=[f"seed {s}" for s in own["seed"]])
        runs.style, runs.line = Style(runs.style.colour, "tick"), False
        dot = context.series(variant, [known.value], [name], low=[low], high=[high], along="x", notes=notes)
        dot.line = False
        series += [runs, dot]
    return Figure(
        name="quality",
        title="KL of every variant",
        alt=f"KL with its interval for {formats.listing(names)}.",
        caption=f"The {context.params.split} split. Marks: mean over seeds with a 95 % interval (blocks and seeds); "
        f"ticks: single runs.{off_scale(context.quality)}",
        views=one_view(Panel("", Axis(KL, log=True), Axis("", categories=names), series)),
        frame=context.quality.reset_index(names="variant"),
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
