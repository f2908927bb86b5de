"""results/sample/NAME/SEED/record.json: what a student writes, beside the teacher."""

from typing import Any, ClassVar, Literal

from attnopt.records.base import Row, StudentRecord
from attnopt.records.evaluate import Task


class SampleRow(Row):
    """One continuation.

    Attributes:
        distinct_1, distinct_2, repetition: shares of word n-grams. teacher_ppl: the teacher's perplexity of the text,
        teacher_text_ppl: of its own; None for an empty text.
        tokens: the texts of the tokens. token_kl: KL(teacher || student) at each, nats.
        seconds: a share of the batch's time.
    """

    prompt: str
    text: str
    teacher_text: str
    distinct_1: float
    distinct_2: float
    repetition: float
    teacher_repetition: float
    teacher_ppl: float | None
    teacher_text_ppl: float | None
    tokens: list[str]
    token_kl: list[float]
    seconds: float


class CheckpointSamples(Row):
    """Of a student kept on the way."""

    step: int
    samples: list[SampleRow]


class GeneratedRecall(Row):
    """A test of recall as `RecallRow`, but the student writes the answer itself, greedily, through its decoding state.

    Attributes:
        size: of phone_book the names; of copy the tokens of the passage, which stands there twice and is to come once
        more, so that what is copied lies about as far back. items: prompts.
        accuracy: share of answers that are right to the last character.
        retention: accuracy over the teacher's, with its interval, where the teacher reaches `TEACHER_CAN`.
    """

    task: Task
    size: int
    items: int
    tokens: int
    accuracy: float
    teacher_accuracy: float
    retention: float | None
    retention_low: float | None
    retention_high: float | None


class SampleRecord(StudentRecord):
    """Attributes:
    settings: the section `sample` without its prompts. recall: answers that the student wrote itself.
    """

    stage: ClassVar[str] = "sample"
    format: Literal[3] = 3

    settings: dict[str, Any]
    samples: list[SampleRow]
    recall: list[GeneratedRecall]
    checkpoints: list[CheckpointSamples]
