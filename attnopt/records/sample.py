"""results/sample/NAME/SEED/record.json: what a student writes, beside the teacher."""

from typing import Any, ClassVar, Literal

from attnopt.records.base import Row, StudentRecord


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


class SampleRecord(StudentRecord):
    """Attributes:
    settings: the section `sample` without its prompts.
    """

    stage: ClassVar[str] = "sample"
    format: Literal[2] = 2

    settings: dict[str, Any]
    samples: list[SampleRow]
    checkpoints: list[CheckpointSamples]
