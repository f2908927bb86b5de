"""The bench: latency, memory and state of a variant against context length, beside SDPA softmax in the same run."""

import os
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["BenchParams", "Phase"]

Phase = Literal["prefill", "decode", "train"]
Lengths = list[Annotated[int, Field(ge=1)]]


class BenchParams(BaseModel):
    """The `bench` section of params.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    machine: Annotated[str, Field(min_length=1)] = "default"
    """A name for the hardware: another name measures again, and the pipeline's cache keeps a record of each."""
    lengths: Annotated[Lengths, Field(min_length=1)] = [128, 256, 512, 1024]
    """Context lengths of the whole model, in tokens."""
    operation_lengths: Lengths = [1024, 2048, 4096]
    """Context lengths of one layer's attention alone, at the model's geometry; empty skips that level."""
    phases: Annotated[list[Phase], Field(min_length=1)] = ["prefill", "decode"]
    """prefill: one forward over the context; decode: single tokens after it; train: forward and backward."""
    decode_tokens: Annotated[int, Field(ge=1)] = 4
    """Tokens decoded for one sample; the sample is their mean."""
    min_iterations: Annotated[int, Field(ge=2)] = 10
    min_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Least time that the interleaved rounds of one phase and length go on, also when the iterations are done."""
    max_seconds: Annotated[float, Field(gt=0)] = 20.0
    """A subject that needs longer for one phase at one length is recorded as over-time."""
    max_spread: Annotated[float, Field(gt=0)] = 0.25
    """(q3 - q1) / median above which a measurement is taken again, once, and flagged if it stays above."""
    batch: Annotated[int, Field(ge=1)] = 1
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 takes one for each core."""

    def cpu_threads(self) -> int:
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return self.threads or available or 1
