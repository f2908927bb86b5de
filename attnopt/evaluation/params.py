"""The sections `evaluate` and `sample` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field

from attnopt.core.section import Positive, Section


class EvaluateParams(Section):
    batch: Positive = 16
    device: Literal["auto", "cpu", "cuda"] = "auto"
    probe_blocks: Positive = 16
    """Valid blocks on which layers, branches, coefficients and random features are looked at one by one."""
    features: list[Positive] = Field(default=[16, 64, 256])
    """Numbers of random features to compare, untrained, where the mechanism has such;"""
    draws: Positive = 3
    """and how often each is drawn."""


class SampleParams(Section):
    prompts: Annotated[list[str], Field(min_length=1)] = Field(default=["Hello, my name is"])
    temperature: Annotated[float, Field(gt=0)] = 0.7
    top_k: Positive = 50
    new_tokens: Positive = 64
    per_prompt: Positive = 1
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
