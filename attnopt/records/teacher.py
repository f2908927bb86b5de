"""data/teacher/manifest.json, which `attnopt cache-logits` leaves beside what it keeps of the teacher's outputs."""

from typing import Any, ClassVar, Literal

from attnopt.records.base import Environment, Record, Row


class TeacherShape(Row):
    """Attributes:
    parameters: how many. hidden: width of the hidden states. positions: the longest sequence.
    """

    architecture: str
    parameters: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    positions: int


class StoredPart(Row):
    blocks: int
    bytes: int
    sha256: str


class StoredSplit(Row):
    """Attributes:
    form: how outputs are kept, see `attnopt.targets.forms`.
    """

    form: str
    bytes_per_token: float
    blocks: int
    bytes: int
    parts: list[StoredPart]


class TeacherManifest(Record):
    """Attributes:
    source: the section `teacher` that it was loaded by. fingerprint: digest of its weights.
    corpus: digest of the text. splits: those that are kept.
    """

    stage: ClassVar[str] = "cache-logits"
    format: Literal[1] = 1

    source: dict[str, Any]
    fingerprint: str
    logits: str
    config: TeacherShape
    corpus: str
    splits: dict[str, StoredSplit]
    environment: Environment
