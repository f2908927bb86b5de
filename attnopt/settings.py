"""params.yaml, typed and validated before any work: unknown keys, wrong types and ranges are refused by name.

Each chapter owns its section; here they come together, and each stage is handed those that it names.
"""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from attnopt.bench.params import BenchParams
from attnopt.core.errors import UserError
from attnopt.core.foreign import read_yaml
from attnopt.core.section import Count, Name, spelling_hint, validated
from attnopt.corpus.params import CorpusParams
from attnopt.evaluation.params import EvaluateParams, SampleParams
from attnopt.records.distill import MIXED
from attnopt.report.params import ReportParams
from attnopt.search.params import SearchParams
from attnopt.student.params import StateParams
from attnopt.teacher.params import TeacherParams
from attnopt.training.params import (
    AlignParams,
    DistillParams,
    LoraParams,
    MixOptions,
    SeedParams,
    TransferParams,
    Variant,
    refuse_partial,
)

OF_EVERY_VARIANT = ("layers", "weights", "seeds")
"""Keys that a variant's section may have beside its mechanism's options;"""
SHARED = ("seed", "state", "transfer", "align", "distill", "lora")
"""and sections of the whole run that it may override key by key."""
OF_A_MIX = ("seed", "state", "align", "distill", "lora")
"""Those that a mix may: its layers have been through transfer."""


class Settings(BaseModel):
    """The whole of params.yaml; variants' sections are reached through `variant(name)`."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    variants: Annotated[dict[Name, str], Field(min_length=1)]
    """What is compared, by name: the mechanism of each. A variant has a section of its own, which may be empty."""
    mixes: dict[Name, dict[str, Any]] = Field(default={})
    """Students whose layers are several variants', by name: `layers`, `seeds`, and of sections what they override."""
    controls: list[str] = Field(default=[])
    """Variants that are there to compare with, and never ranked."""
    seeds: Annotated[list[Count], Field(min_length=1)]
    """A student is trained for each; a variant's section may have others."""
    seed: SeedParams = SeedParams()
    corpus: CorpusParams = CorpusParams()
    teacher: TeacherParams = TeacherParams()
    state: StateParams = StateParams()
    transfer: TransferParams = TransferParams()
    align: AlignParams = AlignParams()
    distill: DistillParams = DistillParams()
    lora: LoraParams = LoraParams()
    evaluate: EvaluateParams = EvaluateParams()
    sample: SampleParams = SampleParams()
    search: SearchParams = SearchParams()
    bench: BenchParams = BenchParams()
    report: ReportParams = ReportParams()

    @property
    def students(self) -> dict[str, str]:
        """Everything that is trained, by name: the variants with their mechanism, then the mixes."""
        return self.variants | dict.fromkeys(self.mixes, MIXED)

    def sections_of(self, run: Callable[..., Any], variant: str | None = None) -> dict[str, Any]:
        """The sections that a stage's function takes, by the names of its parameters without a default.

        Args:
            variant: the name of the one that it takes as `variant`, or as `mix`.
        """
        parameters = inspect.signature(run).parameters.values()
        names = [p.name for p in parameters if p.default is p.empty]
        of_one = {"variant": self.variant, "mix": self.mix}
        return {name: of_one[name](str(variant)) if name in of_one else getattr(self, name) for name in names}

    def variant(self, name: str) -> Variant:
        """One variant with its options. Raises UserError that lists the variants where there is none of that name."""
        from attnopt import mechanisms

        if name not in self.variants:
            raise UserError(
                f"unknown variant '{name}'{spelling_hint(name, self.variants)}; known: {', '.join(self.variants)}"
            )
        section = dict((self.model_extra or {})[name] or {})
        try:
            cls = mechanisms.load_mechanism(self.variants[name])
        except ValueError as error:
            raise UserError(f"params.yaml: variants.{name}: {error}") from None
        if taken := [key for key in cls.Options.model_fields if key in (*OF_EVERY_VARIANT, *SHARED)]:
            raise UserError(
                f"params.yaml: variants.{name}: mechanism '{cls.kind}' has an option '{taken[0]}', which is a key of "
                f"every variant's section already; rename it in its Options"
            )
        own: dict[str, Any] = {key: section.pop(key) for key in OF_EVERY_VARIANT if key in section}
        own = {"seeds": self.seeds} | own | self._overridden(SHARED, section, name)
        options = validated(cls.Options, section, name)
        return validated(Variant, {"name": name, "kind": cls.kind, "options": options} | own, name)

    def mix(self, name: str) -> Variant:
        """One mix; its kind is MIXED and its options are MixOptions. Raises UserError where there is none of that name,
        or it names a variant that there is not."""
        if name not in self.mixes:
            known = ", ".join(self.mixes) or "none"
            raise UserError(f"unknown mix '{name}'{spelling_hint(name, self.mixes)}; known: {known}")
        where, section = f"mixes.{name}", dict(self.mixes[name])
        own: dict[str, Any] = {key: section.pop(key) for key in ("seeds",) if key in section}
        own = {"seeds": self.seeds, "transfer": TransferParams()} | own | self._overridden(OF_A_MIX, section, where)
        options = validated(MixOptions, section, where)
        for layer, variant in options.layers.items():
            self.check_variant(variant, f"{where}.layers.{layer}")
        return validated(Variant, {"name": name, "kind": MIXED, "options": options} | own, where)

    def check_variant(self, name: str, where: str) -> None:
        """Raises UserError where a key names a variant that there is not."""
        if name not in self.variants:
            hint = spelling_hint(name, self.variants) or f"; known: {', '.join(self.variants)}"
            raise UserError(f"params.yaml: {where}: unknown variant '{name}'{hint}")

    def _overridden(self, keys: Iterable[str], section: dict[str, Any], where: str) -> dict[str, Any]:
        """The common sections with what a variant's own section, out of which it is taken, says instead."""
        found = {}
        for key in keys:
            common = getattr(self, key)
            merged = common.model_dump() | _swap_budget(section.pop(key, None) or {})
            found[key] = validated(type(common), merged, f"{where}.{key}")
        return found


def load_settings(path: str | Path = "params.yaml", variants: bool = True) -> Settings:
    """Read and validate a params.yaml, all of it.

    Args:
        variants: False leaves the options of the variants' mechanisms unread, which takes an import of torch.

    Raises: UserError, one line, naming the key, what was there, and what is allowed or the nearest name.
    """
    try:
        content = read_yaml(Path(path).read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run attnopt in the project's folder") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not readable YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a mapping of sections, it is a {type(content).__name__}")
    params = validated(Settings, content, "")
    _check_sections(params)
    every = [*map(params.variant, params.variants), *map(params.mix, params.mixes)] if variants else []
    for variant in every:
        _check_defined(variant, params.teacher)
        _check_long(variant, params.corpus)
    return params


def _check_defined(variant: Variant, teacher: TeacherParams) -> None:
    """The loss of distill, held against how the teacher's outputs are kept."""
    if teacher.sparse:
        try:
            refuse_partial(variant.distill.kl, variant.distill.temperature, f"teacher.logits {teacher.logits}")
        except UserError as error:
            raise UserError(f"params.yaml: {variant.name}: {error}") from None


def _check_long(variant: Variant, corpus: CorpusParams) -> None:
    if variant.distill.long_share and corpus.long_block is None:
        share = variant.distill.long_share
        raise UserError(f"params.yaml: {variant.name}: distill.long_share {share} needs corpus.long_block")


def _check_sections(params: Settings) -> None:
    extra = params.model_extra or {}
    known = [*Settings.model_fields, *params.variants]
    for key in extra:
        if key not in params.variants:
            hint = (
                spelling_hint(key, known)
                or f"; sections are {', '.join(Settings.model_fields)} and one for each variant"
            )
            raise UserError(f"params.yaml: unknown key '{key}'{hint}")
    for name in params.variants:
        if name in Settings.model_fields:
            raise UserError(f"params.yaml: variants: '{name}' is the name of a section; choose another")
        if name not in extra:
            raise UserError(f"params.yaml: variant '{name}' has no section; add `{name}: {{}}` for its defaults")
        if not isinstance(extra[name], dict | None):
            raise UserError(f"params.yaml: {name}: must be a mapping of options, it is {extra[name]!r}")
    for name in params.mixes:
        if name in params.variants:
            raise UserError(f"params.yaml: mixes: '{name}' is the name of a variant; choose another")
    for name in params.search.variants or ():
        params.check_variant(name, "search.variants")
    for name in params.controls:
        if name not in params.students:
            raise UserError(f"params.yaml: controls: '{name}' is no variant{spelling_hint(name, params.students)}")


def _swap_budget(own: dict[str, Any]) -> dict[str, Any]:
    """A variant that sets steps or epochs thereby unsets the other."""
    other = {"steps": "epochs", "epochs": "steps"}
    return {other[k]: None for k in other if own.get(k) is not None and other[k] not in own} | own
