"""The study's questions, one file each: answered from the records, or said to be unanswerable from them."""

from attnopt.report.context import Answer, Context
from attnopt.report.questions import (
    branches,
    choose,
    coefficients,
    coherence,
    crossovers,
    features,
    length,
    mixes,
    others,
    phases,
    positions,
    recall,
    routed,
    simplest,
    untrained,
)

ASKED = (
    choose,
    length,
    recall,
    untrained,
    mixes,
    routed,
    coherence,
    simplest,
    features,
    branches,
    coefficients,
    crossovers,
    phases,
    positions,
    others,
)
ON_BLOCKS = (coherence, features, branches, coefficients, phases, positions, others)
"""Those whose KL is of blocks as trained on, which says nothing of longer texts."""


def answers(context: Context) -> list[Answer]:
    """In the order of the page; a question that `applies` to some runs alone is asked of those."""
    asked = [question for question in ASKED if question is not routed or routed.applies(context)]
    found = [question.answer(context) for question in asked]
    for question, answer in zip(asked, found, strict=True):
        if question in ON_BLOCKS and not answer.short.startswith("Not from this run"):
            answer.limits.append(f"KL here is on {context.on_blocks}: it says nothing of longer texts.")
    return found
