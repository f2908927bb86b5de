"""data/teacher: what distillation and evaluation need of the teacher."""

from attnopt.core.paths import TEACHER
from attnopt.targets.caching import cache_teacher
from attnopt.teacher.params import TeacherParams


def run(teacher: TeacherParams) -> None:
    cache_teacher(teacher, TEACHER)
