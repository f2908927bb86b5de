"""What the bench measures, described so that a fresh process can load it: a model, or one layer's attention alone."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from attnopt.bench.model_runner import ModelRunner
from attnopt.bench.operation_runner import OperationRunner
from attnopt.bench.work import Runner, Setting
from attnopt.mechanisms import load_mechanism
from attnopt.mechanisms.base import Geometry
from attnopt.student.attach import attach
from attnopt.student.files import load_student
from attnopt.student.swap import Swap
from attnopt.teacher.model import load_teacher
from attnopt.teacher.params import TeacherParams


@dataclass(frozen=True)
class Teacher:
    """The teacher, its softmax through the swap as the students' attention is: the baseline of the level "model".

    Its decoding state grows in place. transformers' own cache copies all keys and values at every token, so a mechanism
    would seem faster than softmax where it only copies less.
    """

    params: TeacherParams
    name: str = "softmax"

    def load(self, setting: Setting) -> Runner:
        return ModelRunner(attach(load_teacher(self.params)[0], Swap("softmax")), setting)


@dataclass(frozen=True)
class Student:
    """A distilled student, loaded from its folder."""

    path: Path
    name: str = "variant"

    def load(self, setting: Setting) -> Runner:
        return ModelRunner(load_student(self.path), setting)


@dataclass(frozen=True)
class Operation:
    """One layer's mechanism alone, freshly drawn, on random q, k, v; the baseline of that level is `softmax`.

    That is PyTorch's scaled_dot_product_attention (SDPA), with a decoding state that grows in place.

    Attributes:
        options: of the mechanism, as its section of params.yaml has them; those that are not named have their default.
    """

    kind: str
    geometry: Geometry
    options: dict[str, Any] = field(default_factory=dict)
    name: str = "variant"

    def load(self, setting: Setting) -> Runner:
        cls = load_mechanism(self.kind)
        torch.manual_seed(0)
        return OperationRunner(cls(self.geometry, cls.Options.model_validate(self.options)), self.geometry, setting)
