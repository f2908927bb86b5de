"""The section of params.yaml that students own: state."""

from typing import Annotated

from pydantic import Field

from attnopt.core.section import Positive, Section


class StateParams(Section):
    """How much a student may remember. A variant's section overrides single keys."""

    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """The state that its mechanisms may hold, of softmax's own at `length`; null: as much as their options say."""
    length: Positive = 1024
    """Tokens seen, at which states are compared."""
