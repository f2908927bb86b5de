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
    simplest,
    untrained,
)

ASKED = (
    choose,
    length,
    recall,
    untrained,
    mixes,
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
    found = [question.answer(context) for question in ASKED]
    for question, answer in zip(ASKED, found, strict=True):
        if question in ON_BLOCKS and not answer.short.startswith("Not from this run"):
            answer.limits.append(f"KL here is on {context.on_blocks}: it says nothing of longer texts.")
    return found
