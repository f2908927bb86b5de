"""What `attnopt search` leaves: results/search/record.json."""

from typing import ClassVar, Literal

from attnopt.records.base import Environment, Record, Row

Way = Literal["searched", "rescored", "one", "uniform", "ends", "greedy", "fewest_parameters", "random"]
"""searched: the best measured of those with the least sums, which are rescored. The rivals: one variant in all layers;
two, those of the larger evenly spaced, or first and last; greedy; the fewest added parameters; random."""
Cost = Literal["state", "decode", "prefill"]
"""What a budget is of: bytes of state, nanoseconds of a decoding step or of a prefill."""


class ScoreRow(Row):
    """A candidate in a layer; KL in nats per token.

    Attributes:
        kind: its mechanism. bytes: of its state at the record's length. parameters: that the mechanism adds.
        kl, recall: of the teacher with this layer alone replaced, on text and on recalled values.
        restored_kl, restored_recall: what the teacher's layer gains in a student with the candidate in every layer;
            None where that was not measured.
        decode_ns, prefill_ns: an equal share of the model that has the candidate in every layer; None where no budget
            was of it.
    """

    layer: int
    variant: str
    kind: str
    bytes: int
    parameters: int
    kl: float
    recall: float
    restored_kl: float | None
    restored_recall: float | None
    decode_ns: int | None = None
    prefill_ns: int | None = None


class MixRow(Row):
    """A mix that was measured whole, on the valid split.

    Attributes:
        cost, budget: that it is for, as a share of softmax's. layers: the variant in each.
        replaced, restored: sums of the scores of single layers, of either sort. corrected: of the scores at the end.
        kl, recall: as measured. total: kl and recall_weight times recall, which the sums are to predict.
    """

    way: Way
    cost: Cost = "state"
    budget: float
    layers: list[str]
    bytes: int
    replaced: float
    restored: float | None
    corrected: float
    kl: float
    recall: float
    total: float


class HeldOutRow(Row):
    """A mix on the test split.

    Attributes:
        kl_se, recall_se: standard errors over pieces and over lists.
        more_kl, more_recall: by how much it is above the one searched for the same budget, with errors of the
            differences on the same texts; None for that one.
        predicted, measured: its cost over softmax's, as the sum over layers says and as the whole model was timed;
            None of state, which is counted.
    """

    way: Way
    cost: Cost = "state"
    budget: float
    layers: list[str]
    bytes: int
    kl: float
    kl_se: float | None
    recall: float
    recall_se: float | None
    more_kl: float | None
    more_kl_se: float | None
    more_recall: float | None
    more_recall_se: float | None
    predicted: float | None = None
    measured: float | None = None


class RankRow(Row):
    """How sums of scores rank mixes as measured.

    Attributes:
        sums: of layers replaced alone, restored alone, or of the scores that the last mixes were solved with.
        of: what is summed and measured. value: None where there are too few mixes, or all are alike.
    """

    sums: Literal["replaced", "restored", "corrected"]
    of: Literal["kl", "recall", "total"]
    value: float | None


class SearchRecord(Record):
    """results/search/record.json.

    Attributes:
        variants: the candidates, softmax first.
        length: tokens at which costs are compared. softmax_bytes: of softmax's state then, all layers.
        budgets, decode, prefill: shares of softmax's state, decoding step and prefill.
        score: which scores of single layers were added up.
        spearman: of sums and what was measured, over the random mixes. gap: the total of the mixes rescored first over
            their sums.
    """

    stage: ClassVar[str] = "search"
    format: Literal[2] = 2

    key: str
    environment: Environment
    variants: list[str]
    length: int
    softmax_bytes: int
    budgets: list[float]
    decode: list[float]
    prefill: list[float]
    score: Literal["replaced", "restored", "both"]
    recall_weight: float
    scores: list[ScoreRow]
    mixes: list[MixRow]
    held_out: list[HeldOutRow]
    spearman: list[RankRow]
    gap: float | None
    seconds: float
