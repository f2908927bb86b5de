"""The section `corpus` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from attnopt.core.section import Count, Positive, Section, require_key


class CorpusParams(Section):
    """Where the text comes from and how it is cut. With source teacher, training text is sampled from the teacher."""

    source: Literal["enwiki-sample", "hub", "files", "teacher"] = "enwiki-sample"
    held_out: Literal["enwiki-sample", "hub", "files"] = "enwiki-sample"
    """Where valid and test come from with source teacher."""
    seed: Count = 0
    """Of what source teacher samples."""
    path: str | None = None
    id: str | None = None
    config: str | None = None
    revision: str | None = None
    column: str = "text"
    block: Annotated[int, Field(ge=8)] = 128
    long_block: Positive | None = None
    """Cut the train split into longer blocks of so many tokens too, for `distill.long_share`; null: none."""
    max_tokens: Positive | None = None
    """Thin the train split out to this many tokens, evenly; null keeps all. Source teacher samples so many."""
    max_eval_tokens: Positive | None = None
    """The same for valid and test."""

    @model_validator(mode="after")
    def _complete(self) -> "CorpusParams":
        require_key(self, {"teacher": "max_tokens"})
        if (needed := {"hub": "id", "files": "path"}.get(self.text)) and not getattr(self, needed):
            key = "held_out" if self.source == "teacher" else "source"
            raise ValueError(f"{key} {self.text} needs the key '{needed}'")
        if self.long_block is not None and self.long_block <= self.block:
            raise ValueError(f"long_block {self.long_block} is not above block {self.block}")
        if self.long_block is not None and self.source == "teacher":
            raise ValueError("long_block: source teacher samples blocks of one length; set long_block to null")
        if self.source == "teacher" and (self.max_tokens or 0) < self.block:
            raise ValueError(f"max_tokens {self.max_tokens} does not fill one block of {self.block}")
        return self

    @property
    def text(self) -> str:
        """The source of what is read and not sampled."""
        return self.held_out if self.source == "teacher" else self.source
