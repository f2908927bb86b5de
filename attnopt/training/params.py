"""The sections of params.yaml that training owns: transfer, align, distill, lora, seed; and a variant with its own."""

from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from attnopt.core.errors import UserError
from attnopt.core.section import Count, Positive, Section
from attnopt.records.distill import MIXED
from attnopt.student.params import StateParams
from attnopt.student.swap import Swap

PhaseName = Literal["transfer", "align", "distill", "lora"]
Term = Literal["forward", "reverse", "jsd", "none"]
"""The divergence in the loss of distill; none: cross-entropy alone."""


class PhaseParams(Section):
    """A phase of training: its budget, learning rates, and what trains. A variant's section overrides single keys."""

    steps: Count | None = 0
    """Steps of the optimizer; 0 leaves the phase out, null where epochs are given."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training text in place of steps."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """The highest learning rate."""
    mechanism_lr: Annotated[float, Field(gt=0)] | None = None
    """Of the mechanism's own parameters; null: lr."""
    warmup: Count = 20
    """Steps in which the learning rate rises to it."""
    train: Literal["mechanism", "attention", "all"] = "attention"
    """What trains: the mechanism's own parameters, the attention layers with it, or the whole model."""

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set either steps or epochs, and the other to null")
        return self


class TransferParams(PhaseParams):
    """Attention transfer: every layer's output matched on the teacher's own inputs."""

    loss: Literal["outputs", "weights", "both"] = "outputs"
    """What is matched: layers' outputs, or their attention weights where the mechanism has such."""
    layers: Literal["online", "cached", "in_turn"] = "online"
    """Whether the teacher's layers are run at every step, or what they get and give is read from disk: it is written
    once for all variants, in 4 C bytes per token and layer, under .checkpoints. In turn: one layer after the other,
    of which alone memory then holds what it reads and what its backward pass needs."""


class AlignParams(PhaseParams):
    """The hidden states after every layer matched, the student running on its own."""


class DistillParams(PhaseParams):
    """Distillation on logits, and what all phases share: batches, precision, processes, logging."""

    steps: Count | None = 200
    """As in every phase."""
    kl: Term = "forward"
    """The divergence from the teacher: forward KL, reverse KL or JSD; none: cross-entropy alone."""
    ce_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight in the loss of the cross-entropy to the text."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Both models' logits are divided by it in the loss."""
    patience: Positive | None = None
    """Stop after this many looks at the validation KL without a new best, and keep the best; null: train to the end."""
    keep: list[Annotated[float, Field(gt=0, lt=1)]] = Field(default=[])
    """Shares of the training after which a student is kept besides the last, to be evaluated and to write too."""
    batch: Positive = 8
    """Blocks per step, over all processes."""
    accumulate: Positive = 1
    """Parts of a process' share of the batch that are taken one after the other."""
    processes: Positive = 1
    """Processes that train together, each with its share of the batch."""
    sharding: Literal["none", "full"] = "none"
    """Whether each of several processes keeps both models whole (DDP), or its part of their layers (FSDP2)."""
    recompute: bool = False
    """Whether blocks run again in the backward pass in place of keeping what they computed: less memory, a third more
    work, the same weights."""
    long_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The last share of all steps takes blocks of `corpus.long_block` tokens, fewer of them, for as many tokens."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of the optimizer."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """The largest norm of all gradients together; longer ones are shortened to it."""
    fit: bool = True
    """Whether mechanisms are fitted to the teacher's activations before training;"""
    fit_blocks: Positive = 16
    """and on how many blocks."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward passes; auto: bfloat16 where the hardware multiplies it faster."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    loss_chunk: Positive = 256
    """Positions whose logits exist at the same time."""
    log_every: Positive = 10
    """Steps from one row of the history to the next."""
    valid_every: Positive = 50
    """Steps from one look at the validation KL to the next;"""
    valid_blocks: Positive = 32
    """and blocks that it is measured on."""
    checkpoint_every: Positive = 50
    """Steps from one checkpoint to the next."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.batch % (self.processes * self.accumulate):
            parts = f"{self.processes} processes x {self.accumulate} parts"
            raise ValueError(f"batch: {self.batch} blocks do not divide into {parts}")
        if self.kl == "none" and not self.ce_weight:
            raise ValueError("kl: none needs a ce_weight above 0, or there is nothing to learn from")
        return self


def refuse_partial(kl: Term, temperature: float, logits: str) -> None:
    """Raises UserError where the loss of distill needs more of the teacher than a sparse form of its outputs keeps.

    The reverse divergence and JSD weigh tokens by the student, and a temperature flattens the teacher: each asks for
    probabilities of tokens that were not kept.

    Args:
        logits: what the sparse outputs are, for the message.
    """
    wrong = {"kl": (kl, kl in ("reverse", "jsd")), "temperature": (temperature, temperature != 1)}
    for key, (value, undefined) in wrong.items():
        if undefined:
            raise UserError(
                f"distill.{key} {value} needs whole distributions, and {logits} keeps a part: "
                "set teacher.logits to hidden, online or dense"
            )


class LoraParams(PhaseParams):
    """A light last phase: low-rank adapters on the attention's projections, merged when it ends."""

    rank: Positive = 8
    """Of the adapters."""
    alpha: Positive = 16
    """Their output is scaled by alpha / rank."""
    targets: list[str] | None = None
    """Last parts of the projections' names, such as v_proj and o_proj; null: all of the attention layers."""


class SeedParams(Section):
    """What a run's seed drives, unless fixed here: with data fixed, `seeds` give the spread over random features."""

    data: Count | None = None
    """The order of the data; null: the run's seed."""
    features: Count | None = None
    """What mechanisms draw, such as random features; null: the run's seed."""


class Seeds(NamedTuple):
    """Of one run: its name, the order of its data, and what its mechanisms draw."""

    run: int
    data: int
    features: int


class MixOptions(Section):
    """What a mixed student has in place of a mechanism's options."""

    layers: Annotated[dict[Count, str], Field(min_length=1)]
    """The variant whose layer stands in each place, as `transfer` left it; the others keep softmax."""


class Variant(Section):
    """What every variant's section may hold beside its mechanism's own options."""

    name: str
    kind: str
    options: Any
    layers: list[Count] | None = None
    """The layers that it replaces; the others keep softmax. Null: all."""
    weights: Literal["teacher", "random"] = "teacher"
    """What the attention layers' weights start from; random is a control."""
    seeds: Annotated[list[Count], Field(min_length=1)]
    seed: SeedParams
    state: StateParams = StateParams()
    transfer: TransferParams
    align: AlignParams
    distill: DistillParams
    lora: LoraParams

    @property
    def is_mix(self) -> bool:
        """Whether its students' layers are of several variants; its options are then MixOptions."""
        return self.kind == MIXED

    @property
    def swap(self) -> Swap:
        """What replaces softmax in its students, where it is no mix."""
        return Swap(self.kind, self.options, self.layers, self.weights, self.state)

    def phase(self, name: PhaseName) -> PhaseParams:
        """The section of one phase of its training."""
        sections: dict[PhaseName, PhaseParams] = {
            "transfer": self.transfer,
            "align": self.align,
            "distill": self.distill,
            "lora": self.lora,
        }
        return sections[name]

    def runs(self) -> list[Seeds]:
        """One for each of the variant's seeds."""
        data, features = self.seed.data, self.seed.features
        return [Seeds(s, s if data is None else data, s if features is None else features) for s in self.seeds]
