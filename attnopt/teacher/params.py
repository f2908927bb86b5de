"""The section `teacher` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from attnopt.core.section import Positive, Section, require_key


class TeacherParams(Section):
    """The frozen original. `hub` takes id and revision, `path` a folder, `gguf` a package or a .gguf file in path.

    `logits` is how its outputs over the training text are kept, see docs/teacher-logits.md; hidden is exact.
    """

    source: Literal["bundled", "hub", "path", "gguf"] = "bundled"
    """Where the model comes from: bundled is a small GPT-2 of this project."""
    id: str | None = None
    """The model's id on the hub."""
    revision: str | None = None
    """A commit, tag or branch there; null: the newest."""
    path: str | None = None
    """A folder as `save_pretrained` writes it; with gguf a file, or an installed package that carries one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What its weights are held in."""
    logits: Literal["hidden", "online", "dense", "topk", "sampled"] = "hidden"
    """What is kept of its outputs: final hidden states (exact), nothing, all logits, the largest, or draws."""
    topk: Positive = 32
    """Tokens that logits topk keeps at each position."""
    draws: Annotated[int, Field(ge=1, lt=2**16)] = 64
    """Draws of logits sampled at each position."""
    shift: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the training blocks that stand at later positions, their first token excepted, see positions.py."""
    shift_to: Positive | None = None
    """How many positions shifted blocks reach; null: all that the teacher has."""

    @model_validator(mode="after")
    def _complete(self) -> "TeacherParams":
        return require_key(self, {"hub": "id", "path": "path", "gguf": "path"})

    @property
    def sparse(self) -> bool:
        """Whether only a part of each distribution is kept."""
        return self.logits in ("topk", "sampled")
