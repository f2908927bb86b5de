import pytest
from conftest import Workspace


@pytest.fixture
def phased(workspace: Workspace) -> Workspace:
    """The tiny teacher's outputs and three variants, of which no phase has any steps yet."""
    workspace.set(variants={"softmax": "softmax", "none": "none", "hedgehog": "hedgehog"}, hedgehog={"window": 0})
    workspace.set(distill={"steps": 0})
    workspace.run("tokenize", "cache-logits")
    return workspace
