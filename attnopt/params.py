"""params.yaml, typed and validated before any work: unknown keys, wrong types and ranges are refused by name."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from attnopt.bench import BenchParams
from attnopt.errors import UserError
from attnopt.report import ReportParams
from attnopt.validation import near, validated

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _require(section: Any, needed: dict[str, str]) -> Any:
    key = needed.get(section.source)
    if key and not getattr(section, key):
        raise ValueError(f"source {section.source} needs the key '{key}'")
    return section


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
    max_tokens: Positive | None = None
    """Thin the train split out to this many tokens, evenly; null keeps all. Source teacher samples so many."""
    max_eval_tokens: Positive | None = None
    """The same for valid and test."""

    @model_validator(mode="after")
    def _complete(self) -> "CorpusParams":
        _require(self, {"teacher": "max_tokens"})
        if (needed := {"hub": "id", "files": "path"}.get(self.text)) and not getattr(self, needed):
            key = "held_out" if self.source == "teacher" else "source"
            raise ValueError(f"{key} {self.text} needs the key '{needed}'")
        if self.source == "teacher" and (self.max_tokens or 0) < self.block:
            raise ValueError(f"max_tokens {self.max_tokens} does not fill one block of {self.block}")
        return self

    @property
    def text(self) -> str:
        """The source of what is read and not sampled."""
        return self.held_out if self.source == "teacher" else self.source


class TeacherParams(Section):
    """The frozen original. `hub` takes id and revision, `path` a folder, `gguf` a package or a .gguf file in path.

    `logits` is how its outputs over the training text are kept, see attnopt/logits.py; hidden is exact.
    """

    source: Literal["bundled", "hub", "path", "gguf"] = "bundled"
    id: str | None = None
    revision: str | None = None
    path: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    logits: Literal["hidden", "online", "dense", "topk", "sampled"] = "hidden"
    topk: Positive = 32
    """Tokens that logits topk keeps at each position."""
    draws: Annotated[int, Field(ge=1, lt=2**16)] = 64
    """Draws of logits sampled at each position."""

    @model_validator(mode="after")
    def _complete(self) -> "TeacherParams":
        return _require(self, {"hub": "id", "path": "path", "gguf": "path"})

    @property
    def sparse(self) -> bool:
        """Whether only a part of each distribution is kept."""
        return self.logits in ("topk", "sampled")


class StageParams(Section):
    """A stage of training: its budget, learning rates, and what trains. A variant's section overrides single keys."""

    steps: Count | None = 0
    epochs: Annotated[float, Field(gt=0)] | None = None
    lr: Annotated[float, Field(gt=0)] = 1e-3
    mechanism_lr: Annotated[float, Field(gt=0)] | None = None
    """Of the mechanism's own parameters; null: lr."""
    warmup: Count = 20
    train: Literal["mechanism", "attention", "all"] = "attention"

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set either steps or epochs, and the other to null")
        return self


class TransferParams(StageParams):
    """Attention transfer: every layer's output matched on the teacher's own inputs."""

    loss: Literal["outputs", "weights", "both"] = "outputs"


class AlignParams(StageParams):
    """The hidden states after every layer matched, the student running on its own."""


class DistillParams(StageParams):
    """Distillation on logits, and what all stages share: batches, precision, processes, logging."""

    steps: Count | None = 200
    kl: Literal["forward", "reverse", "jsd", "none"] = "forward"
    ce_weight: Annotated[float, Field(ge=0)] = 0.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    patience: Positive | None = None
    """Stop after this many looks at the validation KL without a new best, and keep the best; null: train to the end."""
    keep: list[Annotated[float, Field(gt=0, lt=1)]] = []
    """Shares of the training after which a student is kept besides the last, to be evaluated and to write too."""
    batch: Positive = 8
    """Blocks per step, over all processes."""
    accumulate: Positive = 1
    """Parts of a process' share of the batch that are taken one after the other."""
    processes: Positive = 1
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] = 1.0
    fit: bool = True
    fit_blocks: Positive = 16
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    loss_chunk: Positive = 256
    log_every: Positive = 10
    valid_every: Positive = 50
    valid_blocks: Positive = 32
    checkpoint_every: Positive = 50

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.batch % (self.processes * self.accumulate):
            parts = f"{self.processes} processes x {self.accumulate} parts"
            raise ValueError(f"batch: {self.batch} blocks do not divide into {parts}")
        if self.kl == "none" and not self.ce_weight:
            raise ValueError("kl: none needs a ce_weight above 0, or there is nothing to learn from")
        return self


class LoraParams(StageParams):
    """A light last stage: low-rank adapters on the attention's projections, merged when it ends."""

    rank: Positive = 8
    alpha: Positive = 16
    targets: list[str] | None = None
    """Last parts of the projections' names, such as v_proj and o_proj; null: all of the attention layers."""


class SeedParams(Section):
    """What a run's seed drives, unless fixed here: with data fixed, `seeds` give the spread over random features."""

    data: Count | None = None
    features: Count | None = None


class Seeds(NamedTuple):
    """Of one run: its name, the order of its data, and what its mechanisms draw."""

    run: int
    data: int
    features: int


class EvaluateParams(Section):
    batch: Positive = 16
    device: Literal["auto", "cpu", "cuda"] = "auto"
    probe_blocks: Positive = 16
    """Valid blocks on which layers, branches, coefficients and random features are looked at one by one."""
    features: list[Positive] = [16, 64, 256]
    """Numbers of random features to compare, untrained, where the mechanism has such;"""
    draws: Positive = 3
    """and how often each is drawn."""


class SampleParams(Section):
    prompts: Annotated[list[str], Field(min_length=1)] = ["Hello, my name is"]
    temperature: Annotated[float, Field(gt=0)] = 0.7
    top_k: Positive = 50
    new_tokens: Positive = 64
    per_prompt: Positive = 1
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"


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
    transfer: TransferParams
    align: AlignParams
    distill: DistillParams
    lora: LoraParams

    def stage(self, name: str) -> Any:
        return getattr(self, name)

    def runs(self) -> list[Seeds]:
        """One for each of the variant's seeds."""
        data, features = self.seed.data, self.seed.features
        return [Seeds(s, s if data is None else data, s if features is None else features) for s in self.seeds]


class Params(BaseModel):
    """The whole of params.yaml; variants' sections are reached through `variant(name)`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    variants: Annotated[dict[str, str], Field(min_length=1)]
    controls: list[str] = []
    """Variants that are there to compare with, and never ranked."""
    seeds: Annotated[list[Count], Field(min_length=1)]
    seed: SeedParams = SeedParams()
    corpus: CorpusParams = CorpusParams()
    teacher: TeacherParams = TeacherParams()
    transfer: TransferParams = TransferParams()
    align: AlignParams = AlignParams()
    distill: DistillParams = DistillParams()
    lora: LoraParams = LoraParams()
    evaluate: EvaluateParams = EvaluateParams()
    sample: SampleParams = SampleParams()
    bench: BenchParams = BenchParams()
    report: ReportParams = ReportParams()

    def variant(self, name: str) -> Variant:
        """One variant with its options. Raises UserError that lists the variants where there is none of that name."""
        from attnopt import mechanisms

        if name not in self.variants:
            raise UserError(f"unknown variant '{name}'{near(name, self.variants)}; known: {', '.join(self.variants)}")
        section = dict((self.model_extra or {})[name] or {})
        try:
            cls = mechanisms.load(self.variants[name])
        except ValueError as error:
            raise UserError(f"params.yaml: variants.{name}: {error}") from None
        own: dict[str, Any] = {key: section.pop(key) for key in ("layers", "weights", "seeds") if key in section}
        for key in ("seed", "transfer", "align", "distill", "lora"):
            common = getattr(self, key)
            merged = common.model_dump() | _swap_budget(section.pop(key, None) or {})
            own[key] = validated(type(common), merged, f"{name}.{key}")
        options = validated(cls.Options, section, name)
        own = {"name": name, "kind": cls.kind, "options": options, "seeds": self.seeds} | own
        return validated(Variant, own, name)


def load(path: str | Path = "params.yaml") -> Params:
    """Read and validate a params.yaml, all of it.

    Raises: UserError, one line, naming the key, what was there, and what is allowed or the nearest name.
    """
    try:
        content = YAML(typ="safe").load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run attnopt in the project's folder") from None
    except (UnicodeDecodeError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not readable YAML: {reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a mapping of sections, it is a {type(content).__name__}")
    params = validated(Params, content, "")
    _check_sections(params)
    for name in params.variants:
        _check_defined(params.variant(name), params.teacher)
    return params


def _check_defined(variant: Variant, teacher: TeacherParams) -> None:
    """Losses that weigh tokens by the student, or flatten the teacher, need its whole distributions."""
    p = variant.distill
    wrong = {"kl": p.kl in ("reverse", "jsd"), "temperature": p.temperature != 1}
    for key in (key for key in wrong if wrong[key] and teacher.sparse):
        needs = f"distill.{key} {getattr(p, key)} needs whole distributions"
        keeps = f"teacher.logits {teacher.logits} keeps a part"
        raise UserError(f"params.yaml: {variant.name}: {needs}, and {keeps}: set it to hidden, online or dense")


def _check_sections(params: Params) -> None:
    extra = params.model_extra or {}
    known = [*Params.model_fields, *params.variants]
    for key in extra:
        if key not in params.variants:
            hint = near(key, known) or f"; sections are {', '.join(Params.model_fields)} and one for each variant"
            raise UserError(f"params.yaml: unknown key '{key}'{hint}")
    for name in params.variants:
        if name in Params.model_fields:
            raise UserError(f"params.yaml: variants: '{name}' is the name of a section; choose another")
        if name not in extra:
            raise UserError(f"params.yaml: variant '{name}' has no section; add `{name}: {{}}` for its defaults")
        if not isinstance(extra[name], dict | None):
            raise UserError(f"params.yaml: {name}: must be a mapping of options, it is {extra[name]!r}")
    for name in params.controls:
        if name not in params.variants:
            raise UserError(f"params.yaml: controls: '{name}' is no variant{near(name, params.variants)}")


def _swap_budget(own: dict[str, Any]) -> dict[str, Any]:
    """A variant that sets steps or epochs thereby unsets the other."""
    other = {"steps": "epochs", "epochs": "steps"}
    return {other[k]: None for k in other if own.get(k) is not None and other[k] not in own} | own
