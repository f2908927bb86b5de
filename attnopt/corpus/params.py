"""The section `corpus` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from attnopt.core.section import Count, Positive, Section, require_key


class CorpusParams(Section):
    """Where the text comes from and how it is cut. With source teacher, training text is sampled from the teacher."""

    source: Literal["enwiki-sample", "hub", "files", "teacher"] = "enwiki-sample"
    """The bundled articles, a data set of a hub, files of yours, or what the teacher writes."""
    held_out: Literal["enwiki-sample", "hub", "files"] = "enwiki-sample"
    """Where valid and test come from with source teacher."""
    seed: Count = 0
    """Of what source teacher samples."""
    path: str | None = None
    """With files: the folder of train.txt, valid.txt and test.txt."""
    id: str | None = None
    """With hub: the data set's id;"""
    config: str | None = None
    """its configuration;"""
    revision: str | None = None
    """a commit, tag or branch of it;"""
    column: str = "text"
    """and the column with the text."""
    block: Annotated[int, Field(ge=8)] = 128
    """Tokens of a block: what training and evaluation read at once."""
    long_block: Positive | None = None
    """Cut the train split into longer blocks of so many tokens too, for `distill.long_share`; null: none."""
    long_across: bool = False
    """Longer blocks go on over documents' ends; false: each is a piece of one document."""
    max_tokens: Positive | None = None
    """Of the train split, so many tokens, see `take`; null keeps all. Source teacher samples so many."""
    take: Literal["spread", "first"] | None = None
    """What `max_tokens` keeps: blocks spread evenly over all of the text, or the first tokens, after which nothing more
    is read. null: first of a hub, spread of other sources."""
    max_eval_tokens: Positive | None = None
    """Thin valid and test out to this many tokens, evenly; their documents are kept whole."""

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
    def stops(self) -> bool:
        """Whether reading the train split ends at max_tokens."""
        return self.max_tokens is not None and (self.take or ("first" if self.text == "hub" else "spread")) == "first"

    @property
    def text(self) -> str:
        """The source of what is read and not sampled."""
        return self.held_out if self.source == "teacher" else self.source
