"""The study's questions, one file each: answered from the records, or said to be unanswerable from them."""

from attnopt.report.context import Answer, Context
from attnopt.report.questions import (
    choose,
    coefficients,
    coherence,
    crossovers,
    features,
    positions,
    simplest,
    stages,
)


def answers(context: Context) -> list[Answer]:
    asked = (choose, coherence, simplest, features, coefficients, crossovers, stages, positions)
    return [question.answer(context) for question in asked]
