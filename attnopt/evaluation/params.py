"""The sections `evaluate` and `sample` of params.yaml."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from attnopt.core.section import Count, Positive, Section
from attnopt.records.evaluate import Task

BOOK = 3
"""Names of the smallest phone book: two are shown again, and a third is asked for."""


class EvaluateParams(Section):
    """What students are measured on, in held-out text."""

    batch: Positive = 16
    """Blocks per forward pass."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    probe_blocks: Positive = 16
    """Valid blocks on which layers, branches, coefficients and random features are looked at one by one."""
    lengths: list[Annotated[int, Field(ge=8)]] = Field(default=[])
    """Quality is measured on pieces of this many tokens too, each of a single document of the test split;"""
    documents: Positive = 16
    """and on so many pieces of each length."""
    recall: dict[Task, list[Count]] = Field(default={})
    """Sizes to test recall at: the gap in tokens of copy, the number of pairs or names, the length of needle;"""
    items: Positive = 10
    """how many blocks of each size;"""
    seed: Count = 0
    """and what they are drawn with."""
    features: list[Positive] = Field(default=[16, 64, 256])
    """Numbers of random features to compare, untrained, where the mechanism has such;"""
    draws: Positive = 3
    """and how often each is drawn."""

    @model_validator(mode="after")
    def _sized(self) -> "EvaluateParams":
        _check_sizes(self.recall)
        return self


class SampleParams(Section):
    """What students write."""

    prompts: Annotated[list[str], Field(min_length=1)] = Field(default=["Hello, my name is"])
    """What every student goes on from."""
    temperature: Annotated[float, Field(gt=0)] = 0.7
    """Logits are divided by it before a token is drawn."""
    top_k: Positive = 50
    """Of the most probable tokens, how many there are to draw from."""
    new_tokens: Positive = 64
    """Tokens that are written after each prompt."""
    per_prompt: Positive = 1
    """Texts for each prompt."""
    seed: int = 0
    """What tokens are drawn with."""
    recall: dict[Literal["copy", "phone_book"], list[Positive]] = Field(default={})
    """Sizes to test recall at by what a student writes: the passage's tokens of copy, the names of phone_book;"""
    items: Positive = 10
    """and how many prompts of each size."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""

    @model_validator(mode="after")
    def _sized(self) -> "SampleParams":
        _check_sizes(self.recall)
        return self


def _check_sizes(recall: Mapping[Any, list[int]]) -> None:
    for task, least in {"pairs": 1, "phone_book": BOOK, "needle": 1}.items():
        for size in recall.get(task, []):
            if size < least:
                raise ValueError(f"recall.{task}: {size} is below the least of {least}")
