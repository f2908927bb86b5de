"""The section `search` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from attnopt.core.section import Count, Positive, Section

Share = Annotated[float, Field(gt=0)]


class SearchParams(Section):
    variants: Annotated[list[str], Field(min_length=1)] | None = None
    """Whose layers there are to choose from; null: those of all that are no control, and of none."""
    budgets: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = Field(default=[0.125, 0.25])
    """What the whole model may hold, as shares of softmax's state at `length`: a mix is searched for each."""
    decode: list[Share] = Field(default=[])
    """The same of the time of a decoding step, measured on this machine: its record is then one of this machine's."""
    prefill: list[Share] = Field(default=[])
    """The same of a prefill's time."""
    length: Annotated[int, Field(ge=8)] = 1024
    """Tokens of the pieces that everything is measured on, and at which costs are compared."""
    blocks: Positive = 2
    """Pieces of the valid split that scores are measured on;"""
    every: Positive = 4
    """the KL at every so many-th of their tokens."""
    pairs: Positive = 16
    """Key-value pairs of a list that is to be recalled;"""
    items: Positive = 4
    """and how many lists there are."""
    recall_weight: Annotated[float, Field(ge=0)] = 1.0
    """How much a nat of KL on recalled values counts beside one on text."""
    score: Literal["replaced", "restored", "both"] = "replaced"
    """Which score of single layers is added up: of a layer that alone is replaced in the teacher, or what restoring it
    gains in a student that is replaced all over; or their mean."""
    restored: bool = True
    """Whether layers restored alone are measured too; without, `score` is of those replaced, in half the time."""
    rescored: Positive = 5
    """The best mixes by sum, which are measured whole;"""
    rounds: Positive = 2
    """and how often, the scores being corrected in between by what was measured."""
    draws: Count = 20
    """Random mixes of each budget, to compare with and to hold predicted against measured."""
    held_out: Positive = 8
    """Pieces, and lists, of the test split on which the mixes found and their rivals are compared at last."""
    batch: Positive = 2
    """Pieces per forward pass."""
    seed: Count = 0
    """Of the lists, and of the random mixes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""

    @model_validator(mode="after")
    def _measured(self) -> "SearchParams":
        if not self.restored and self.score != "replaced":
            raise ValueError(f"score {self.score} needs restored: true")
        return self
