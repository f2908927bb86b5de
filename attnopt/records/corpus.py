"""data/corpus/manifest.json, which `attnopt tokenize` leaves beside the blocks and documents of every split."""

from typing import ClassVar, Literal

from attnopt.records.base import Record, Row


class SplitCounts(Row):
    """Of a split's text, all of whose documents are kept, and `blocks` of what is cut from it, thinned out."""

    documents: int
    words: int
    bytes: int
    tokens: int
    blocks: int


class CorpusManifest(Record):
    """Attributes:
    sha256, tokenizer: digests of the text and of the tokenizer. block: tokens of a block. splits: train, valid, test.
    long_block, long_blocks: tokens and number of the longer blocks that the train split is cut into too; None and 0
    where it is not.
    """

    stage: ClassVar[str] = "tokenize"
    format: Literal[2] = 2

    source: str
    name: str
    sha256: str
    tokenizer: str
    vocabulary: int
    block: int
    long_block: int | None = None
    long_blocks: int = 0
    splits: dict[str, SplitCounts]
