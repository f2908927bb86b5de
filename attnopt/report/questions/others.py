"""The study's last question: whether other losses, other data, longer blocks or other teachers change the answer."""

import json
from itertools import combinations
from typing import Any

from attnopt.report.context import Answer, Context, absent
from attnopt.report.parts import formats
from attnopt.statistics import STANDARD_ERRORS

SLUG = "others"
QUESTION = "Do other losses, other data, longer blocks or other teachers change the answer?"
LOSSES = {"kl": "KL", "ce_weight": "cross-entropy weight", "temperature": "temperature"}
"""What a training's budget says of its loss on logits."""


def answer(context: Context) -> Answer:
    pairs = [pair for pair in combinations(_trained(context), 2) if _one_loss_apart(*pair)]
    if not pairs:
        why = f"no two candidates differ in their loss on logits alone, and it has {_fixed(context)}"
        return absent(SLUG, QUESTION, why)
    first, *more = [_sentence(context, *pair) for pair in pairs]
    rest = f"Other data, blocks and teachers are not from this run: it has {_fixed(context)}."
    return Answer(slug=SLUG, question=QUESTION, short=f"{first} {rest}", sentences=more)


def _trained(context: Context) -> list[dict[str, Any]]:
    """How each candidate was trained, losses and all else apart."""
    runs = context.records.runs.drop_duplicates("variant")
    found = []
    for row in runs[runs["variant"].isin(context.ranked.index)].to_dict("records"):
        budget = {k.removeprefix("budget_"): v for k, v in row.items() if k.startswith("budget_") and v == v}
        losses = {key: budget.pop(key, None) for key in LOSSES}
        rest = {key: row[key] for key in ("kind", "options", "layers", "parts")} | budget
        found.append(
            {"variant": row["variant"], "losses": losses, "rest": json.dumps(rest, sort_keys=True, default=str)}
        )
    return found


def _one_loss_apart(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a["rest"] == b["rest"] and a["losses"] != b["losses"]


def _sentence(context: Context, a: dict[str, Any], b: dict[str, Any]) -> str:
    """Which of two is closer to the teacher, and what sets them apart."""
    better, worse = sorted((str(a["variant"]), str(b["variant"])), key=lambda v: context.kl(v).value)
    gap = context.worse_by(worse, better)
    unlike = [key for key in LOSSES if a["losses"][key] != b["losses"][key]]
    shown = [", ".join(f"{LOSSES[key]} {row['losses'][key]}" for key in unlike) for row in (a, b)]
    told = [f"{row['variant']} ({losses})" for row, losses in zip((a, b), shown, strict=True)]
    clear = "more" if gap.clearly_above(0.0) else "not more"
    return (
        f"{formats.listing(told)} differ in their loss alone: **{better}** has the lower KL, by "
        f"{formats.estimate(gap)}, {clear} than {STANDARD_ERRORS} standard errors."
    )


def _fixed(context: Context) -> str:
    """What there is one of."""
    corpus = context.records.corpus
    return (
        f"one teacher ({context.teacher_name}), one corpus ({corpus.source}) and one length of blocks "
        f"({corpus.block} tokens)"
    )
