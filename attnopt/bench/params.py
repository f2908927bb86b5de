"""The section `bench` of params.yaml."""

import os
from typing import Annotated, Literal

from pydantic import Field

from attnopt.core.section import Count, Positive, Section
from attnopt.records.bench import Phase

Lengths = list[Positive]


class BenchParams(Section):
    """What is measured, how often, and on what."""

    machine: Annotated[str, Field(min_length=1)] = "default"
    """A name for what the hardware's fingerprint cannot tell, such as a power plan: another name measures again."""
    lengths: Lengths = Field(default=[128, 256, 512, 1024], min_length=1)
    """Context lengths of the whole model, in tokens."""
    operation_lengths: Lengths = Field(default=[1024, 2048, 4096])
    """Context lengths of one layer's attention alone, at the model's geometry; empty skips that level."""
    phases: list[Phase] = Field(default=["prefill", "decode", "train"], min_length=1)
    """prefill: one forward over the context; decode: single tokens after it; train: forward and backward."""
    longest_train: Positive | None = 128
    """Longest context at which the phase train is measured; null sets no limit."""
    decode_tokens: Positive = 4
    """Tokens decoded for one sample; the sample is their mean."""
    min_iterations: Annotated[int, Field(ge=2)] = 10
    """Samples of every subject; with fewer, for want of time, it is recorded as over-time."""
    min_seconds: Annotated[float, Field(ge=0)] = 0.2
    """Least time that the interleaved rounds of one phase and length go on, also when the iterations are done."""
    max_seconds: Annotated[float, Field(gt=0)] = 20.0
    """A subject that needs longer for one phase at one length is recorded as over-time."""
    max_spread: Annotated[float, Field(gt=0)] = 0.25
    """(q3 - q1) / median above which a measurement is taken again, once, and flagged if it stays above."""
    batch: Positive = 1
    """Sequences side by side."""
    batches: Lengths = Field(default=[])
    """Further batch sizes at which the whole model's prefill and decoding are measured, at every length."""
    energy: Literal["rapl", "nvml"] | None = None
    """Also measure energy: `nvml` of an NVIDIA GPU (needs nvidia-ml-py), `rapl` of the processor on Linux."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on a GPU, whose flash attention takes no float32, and float32 on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    compile: bool = False
    """Fuse the decoding steps of mechanisms by torch.compile, which needs a C++ compiler."""
    threads: Count = 0
    """CPU threads; 0 takes one for each core."""

    def at(self, length: int, batch: int) -> "BenchParams":
        """These params with the phases that are measured at this length and batch; train at `batch` alone."""
        trained = batch == self.batch and (self.longest_train is None or length <= self.longest_train)
        phases = [p for p in self.phases if p != "train" or trained]
        return self.model_copy(update={"phases": phases, "batch": batch})

    def cpu_threads(self) -> int:
        """Threads to compute with: `threads`, or one for each core that this process may use."""
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return self.threads or available or 1
