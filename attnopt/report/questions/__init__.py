"""The study's questions, one file each: answered from the records, or said to be unanswerable from them."""

from attnopt.report.context import Answer, Context
from attnopt.report.questions import (
    branches,
    choose,
    coefficients,
    coherence,
    crossovers,
    features,
    others,
    phases,
    positions,
    simplest,
)


def answers(context: Context) -> list[Answer]:
    asked = (choose, coherence, simplest, features, branches, coefficients, crossovers, phases, positions, others)
    return [question.answer(context) for question in asked]
