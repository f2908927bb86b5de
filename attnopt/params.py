"""params.yaml, typed and validated before any work: unknown keys, wrong types and ranges are refused by name."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from attnopt.bench import BenchParams
from attnopt.errors import UserError
from attnopt.report import ReportParams

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
    """Where the text comes from and how it is cut."""

    source: Literal["enwiki-sample", "hub", "files"] = "enwiki-sample"
    path: str | None = None
    id: str | None = None
    config: str | None = None
    revision: str | None = None
    column: str = "text"
    block: Annotated[int, Field(ge=8)] = 128
    max_tokens: Positive | None = None
    """Thin the train split out to this many tokens, evenly; null keeps all."""
    max_eval_tokens: Positive | None = None
    """The same for valid and test."""

    @model_validator(mode="after")
    def _complete(self) -> "CorpusParams":
        return _require(self, {"hub": "id", "files": "path"})


class TeacherParams(Section):
    """The frozen original. `hub` takes id and revision, `path` a folder, `gguf` a package or a .gguf file in path."""

    source: Literal["bundled", "hub", "path", "gguf"] = "bundled"
    id: str | None = None
    revision: str | None = None
    path: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    logits: Literal["hidden", "online"] = "hidden"

    @model_validator(mode="after")
    def _complete(self) -> "TeacherParams":
        return _require(self, {"hub": "id", "path": "path", "gguf": "path"})


class DistillParams(Section):
    """The one trainer of all variants; a variant's own `distill:` overrides single keys."""

    steps: Count | None = 200
    epochs: Annotated[float, Field(gt=0)] | None = None
    batch: Positive = 8
    lr: Annotated[float, Field(gt=0)] = 1e-3
    mechanism_lr: Annotated[float, Field(gt=0)] | None = None
    warmup: Count = 20
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] = 1.0
    train: Literal["mechanism", "attention", "all"] = "attention"
    fit: bool = True
    fit_blocks: Positive = 16
    kl: Literal["forward", "reverse", "jsd"] = "forward"
    ce_weight: Annotated[float, Field(ge=0)] = 0.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    loss_chunk: Positive = 64
    log_every: Positive = 10
    valid_every: Positive = 50
    valid_blocks: Positive = 32
    checkpoint_every: Positive = 50

    @model_validator(mode="after")
    def _one_budget(self) -> "DistillParams":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set either steps or epochs, and the other to null")
        return self


class EvaluateParams(Section):
    batch: Positive = 16
    device: Literal["auto", "cpu", "cuda"] = "auto"


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
    layers: list[Count] | None = None
    distill: DistillParams
    options: Any


class Params(BaseModel):
    """The whole of params.yaml; variants' sections are reached through `variant(name)`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    variants: Annotated[dict[str, str], Field(min_length=1)]
    seeds: Annotated[list[Count], Field(min_length=1)]
    corpus: CorpusParams = CorpusParams()
    teacher: TeacherParams = TeacherParams()
    distill: DistillParams = DistillParams()
    evaluate: EvaluateParams = EvaluateParams()
    sample: SampleParams = SampleParams()
    bench: BenchParams = BenchParams()
    report: ReportParams = ReportParams()

    def variant(self, name: str) -> Variant:
        """One variant with its options. Raises UserError that lists the variants where there is none of that name."""
        from attnopt import mechanisms

        if name not in self.variants:
            raise UserError(f"unknown variant '{name}'{_near(name, self.variants)}; known: {', '.join(self.variants)}")
        section = dict((self.model_extra or {})[name] or {})
        own_budget = section.pop("distill", None) or {}
        layers = section.pop("layers", None)
        try:
            cls = mechanisms.load(self.variants[name])
        except ValueError as error:
            raise UserError(f"params.yaml: variants.{name}: {error}") from None
        options = _validated(cls.Options, section, name)
        distill = _validated(DistillParams, self.distill.model_dump() | _swap_budget(own_budget), f"{name}.distill")
        return _validated(
            Variant,
            {"name": name, "kind": cls.kind, "layers": layers, "distill": distill, "options": options},
            name,
        )


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
    params = _validated(Params, content, "")
    _check_sections(params)
    for name in params.variants:
        params.variant(name)
    return params


def _check_sections(params: Params) -> None:
    extra = params.model_extra or {}
    known = [*Params.model_fields, *params.variants]
    for key in extra:
        if key not in params.variants:
            hint = _near(key, known) or f"; sections are {', '.join(Params.model_fields)} and one for each variant"
            raise UserError(f"params.yaml: unknown key '{key}'{hint}")
    for name in params.variants:
        if name in Params.model_fields:
            raise UserError(f"params.yaml: variants: '{name}' is the name of a section; choose another")
        if name not in extra:
            raise UserError(f"params.yaml: variant '{name}' has no section; add `{name}: {{}}` for its defaults")
        if not isinstance(extra[name], dict | None):
            raise UserError(f"params.yaml: {name}: must be a mapping of options, it is {extra[name]!r}")


def _validated(model: Any, content: Any, where: str) -> Any:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(_one_line(error, model, where)) from None


def _one_line(error: ValidationError, model: Any, where: str) -> str:
    first = error.errors()[0]
    path = ".".join(str(p) for p in (where, *first["loc"]) if p != "")
    others = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        section = _field_model(model, first["loc"][:-1])
        names = list(section.model_fields)
        near = _near(str(first["loc"][-1]), names)
        return f"params.yaml: unknown key '{path}'{near}; known: {', '.join(names) or 'none'}{others}"
    if first["type"] == "missing":
        return f"params.yaml: '{path}' is missing{others}"
    reason = first["msg"].removeprefix("Value error, ")
    if isinstance(first["input"], dict):
        return f"params.yaml: {path + ': ' if path else ''}{reason}{others}"
    return f"params.yaml: '{path}' is {first['input']!r}: {reason[0].lower()}{reason[1:]}{others}"


def _field_model(model: Any, path: tuple) -> Any:
    for part in path:
        field = model.model_fields.get(part)
        if field is not None and hasattr(field.annotation, "model_fields"):
            model = field.annotation
    return model


def _near(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _swap_budget(own: dict[str, Any]) -> dict[str, Any]:
    """A variant that sets steps or epochs thereby unsets the other."""
    other = {"steps": "epochs", "epochs": "steps"}
    return {other[k]: None for k in other if own.get(k) is not None and other[k] not in own} | own
