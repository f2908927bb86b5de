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


class CheckpointQuality(Row):
    """Of a student kept on the way."""

    step: int
    splits: dict[str, Quality]


class EvaluateRecord(StudentRecord):
    """Attributes:
    splits: valid and test. layers, branches, pruned, features: empty where they do not apply.
    """

    stage: ClassVar[str] = "evaluate"
    format: Literal[2] = 2

    splits: dict[str, Quality]
    layers: list[LayerRow]
    branches: list[BranchRow]
    pruned: list[PrunedRow]
    features: list[FeatureRow]
    checkpoints: list[CheckpointQuality]
