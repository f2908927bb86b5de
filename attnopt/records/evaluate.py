"""results/evaluate/NAME/SEED/record.json: a student against the teacher on held-out text. KL and losses in nats."""

from typing import ClassVar, Literal

from attnopt.records.base import Row, StudentRecord


class ClassRow(Row):
    """KL and losses of the predicted tokens of one class.

    Attributes:
        by: the partition, frequency or context. label: the class. kl_se: over blocks; None with a single block.
    """

    by: str
    label: str
    tokens: int
    kl: float
    kl_se: float | None
    ce: float
    teacher_ce: float


class Quality(Row):
    """A split's measures: means over tokens. kl_by_position: (T - 1) of them; se: standard error over blocks."""

    tokens: int
    blocks: int
    kl_forward: float
    kl_forward_se: float | None
    kl_reverse: float
    jsd: float
    top1_agreement: float
    ce: float
    teacher_ce: float
    ppl_token: float
    ppl_word: float
    ppl_byte: float
    teacher_ppl_token: float
    teacher_ppl_word: float
    teacher_ppl_byte: float
    ppl_ratio: float
    kl_by_position: list[float]
    kl_by_class: list[ClassRow]


class LayerRow(Row):
    """error: || ours - theirs ||^2 / || theirs ||^2 of the layer's output on the teacher's own inputs."""

    layer: int
    error: float


class BranchRow(Row):
    """KL with these branches alone. difference_se: standard error of the difference to the first row's, by block."""

    branches: str
    kl_forward: float
    kl_forward_se: float | None
    difference_se: float | None
    blocks: int


class PrunedRow(Row):
    """KL with `kept` of `of` coefficients, those under `threshold` dropped; errors as in BranchRow."""

    kept: int
    of: int
    threshold: float
    kl_forward: float
    kl_forward_se: float | None
    difference_se: float | None
    blocks: int


class FeatureRow(Row):
    """KL of an untrained, fitted mechanism with so many random features, of one draw."""

    features: int
    draw: int
    kl_forward: float


class PositionBin(Row):
    """The predicted tokens at positions start <= t < stop of pieces of documents, t counted from 0 at a piece's start.

    Nothing predicts the token at 0, so that the first bin has one less of each piece.

    Attributes:
        blocks: documents; errors are over these. kl_forward, ce: means, nats. top1_agreement: a share.
        ppl_ratio: the student's perplexity over the teacher's in the bin, ppl_ratio_low and _high its 95 % interval;
        errors and intervals are None with a single document.
    """

    start: int
    stop: int
    tokens: int
    blocks: int
    kl_forward: float
    kl_forward_se: float | None
    top1_agreement: float
    top1_agreement_se: float | None
    ce: float
    teacher_ce: float
    ppl_ratio: float
    ppl_ratio_low: float | None
    ppl_ratio_high: float | None


class GapRow(Row):
    """The predicted tokens whose pair (token before, token) last stood `low` <= tokens back < `high` in the piece.

    Attributes:
        low: 0 for those whose pair stands there for the first time, with `high` None. high: None for the last bin too.
        kl_forward_se: over documents; None with a single one.
    """

    low: int
    high: int | None
    tokens: int
    kl_forward: float
    kl_forward_se: float | None
    top1_agreement: float
    ce: float
    teacher_ce: float


class LengthQuality(Row):
    """Quality on contiguous pieces of `length` tokens of single documents, never packed; of the test split.

    Attributes:
        blocks: such pieces. positions: bins whose bounds are powers of two, the first and the last ones as they come.
        gaps: by distance to the last occurrence of the predicted pair.
        holds_to: the longest bound of a bin up to which all bins' KL stays within twice that of the first, or 2e-4
        nats; None where the first one alone does.
    """

    length: int
    blocks: int
    tokens: int
    kl_forward: float
    kl_forward_se: float | None
    top1_agreement: float
    ppl_ratio: float
    ppl_ratio_low: float | None
    ppl_ratio_high: float | None
    positions: list[PositionBin]
    gaps: list[GapRow]
    holds_to: int | None


Task = Literal["copy", "pairs", "phone_book", "needle"]


class RecallRow(Row):
    """A test of recall in context, student and teacher on the same items, teacher-forced.

    Attributes:
        task: copy: a passage repeated after a gap; pairs: a key-value list, every key queried; phone_book: one number
        of a list of names; needle: a number in filler text.
        size: the gap in tokens for copy, the number of pairs or names, the length in tokens for needle.
        items: blocks. queries: answers asked for. tokens: the longest item's length.
        accuracy, teacher_accuracy: shares of queries of which every token is the arg-max.
        retention: accuracy over the teacher's, with its 95 % interval (Wilson's, clustered by item), where the teacher
        reaches the bar (`TEACHER_CAN`); None where this teacher cannot.
        kl_answer: forward KL of the answers' tokens, nats, always, its error over items; nll, teacher_nll: of the same
        tokens. digest: sha256 of the items, which `evaluate.recall`, `items` and `seed` draw again from data/corpus.
    """

    task: Task
    size: int
    items: int
    queries: int
    tokens: int
    accuracy: float
    teacher_accuracy: float
    retention: float | None
    retention_low: float | None
    retention_high: float | None
    kl_answer: float
    kl_answer_se: float | None
    nll: float
    teacher_nll: float
    digest: str = ""


TEACHER_CAN = 0.9
"""The teacher's accuracy from which on a retention is stated."""


class CheckpointQuality(Row):
    """Of a student kept on the way."""

    step: int
    splits: dict[str, Quality]


class EvaluateRecord(StudentRecord):
    """Attributes:
    splits: valid and test, in blocks as trained on. lengths: at each length of `evaluate.lengths`. recall: at each
    size. state_bytes: of one sequence at each length, by length. layers, branches, pruned, features: empty where they
    do not apply.
    """

    stage: ClassVar[str] = "evaluate"
    format: Literal[3] = 3

    splits: dict[str, Quality]
    lengths: list[LengthQuality]
    recall: list[RecallRow]
    state_bytes: dict[int, int]
    layers: list[LayerRow]
    branches: list[BranchRow]
    pruned: list[PrunedRow]
    features: list[FeatureRow]
    checkpoints: list[CheckpointQuality]
