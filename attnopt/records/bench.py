"""results/bench/NAME/record.json: what one variant costs against context length, beside softmax in the same run."""

from typing import ClassVar, Literal

from pydantic import Field

from attnopt.records.base import Control, Environment, Record, Row

Level = Literal["model", "operation"]
Phase = Literal["prefill", "decode", "train"]
Outcome = Literal["ok", "out-of-memory", "over-time"]
Unit = Literal["ms", "ms/token"]


class Measurement(Row):
    """One subject in one phase at one length; None where nothing could be measured.

    Attributes:
        level: "model" for whole models, "operation" for one layer's attention alone.
        length: of the context, in tokens. batch: sequences side by side.
        subject: "variant" or "softmax", the baseline that was measured in the same rounds: SDPA with a decoding state
            that grows in place, in the whole model through the swap.
        samples, median, q1, q3: times of single runs and their quartiles, in `unit`.
        peak_mib: most memory held at any moment of the phase, above the loaded subject and its inputs: the kernel's
            high-water mark of the resident set on a CPU, the allocator's on a GPU.
        peak_sampled_mib: the same, sampled from another process, which may miss the top; None on a GPU.
        peak_allocated_mib: the same by torch's allocator.
        memory_agrees: whether these two are within a tenth of each other, or two MiB.
        peak_reserved_mib: what a GPU's allocator took from the driver meanwhile; None on a CPU.
        weight_bytes: of the subject's parameters and buffers.
        joules: of one run, or one token where it decodes, idle power included; None unless bench.energy is set.
        state_bytes, state_bytes_declared: of the whole batch after a prefill of `length` tokens; None in phase train.
            A state that grows in place takes up to twice as much once decoding goes on, which is in the peak.
        synthetic_positions: whether the phase needed more positions than the model has; only its cost means anything.
        outcome: "ok", or why time or memory could not be measured to the end; what was found before is kept.
        noisy: whether the spread of the samples stayed above `bench.max_spread` when they were taken again.
    """

    level: Level
    phase: Phase
    length: int
    batch: int
    subject: str
    unit: Unit
    samples: list[float] = Field(default=[])
    median: float | None = None
    q1: float | None = None
    q3: float | None = None
    peak_mib: float | None = None
    peak_sampled_mib: float | None = None
    peak_allocated_mib: float | None = None
    peak_reserved_mib: float | None = None
    memory_agrees: bool | None = None
    weight_bytes: int | None = None
    joules: float | None = None
    state_bytes: int | None = None
    state_bytes_declared: int | None = None
    synthetic_positions: bool = False
    outcome: Outcome = "ok"
    noisy: bool = False


class BenchEnvironment(Environment):
    """The machine, and what of it the bench used.

    Attributes:
        dtype: of weights and activations.
        load_before: processes that wanted a core in the minute before the bench.
    """

    dtype: str
    load_before: float


class BenchRecord(Record):
    """One variant's bench.

    Attributes:
        control: "leaks" for a mechanism that sees the future.
        key: digest of all that the record is a function of, the hardware included.
        machine: the name that `bench.machine` gives what the environment cannot tell. hardware: in one line.
    """

    stage: ClassVar[str] = "bench"
    format: Literal[3] = 3

    variant: str
    kind: str
    control: Control | None
    key: str
    machine: str
    hardware: str
    environment: BenchEnvironment
    measurements: list[Measurement]
