"""The small world with a teacher that reads far: what is measured at length needs its positions."""

import torch
from conftest import Workspace
from transformers import GPT2Config, GPT2LMHeadModel

POSITIONS = 512


def lengthen(workspace: Workspace, **evaluate: object) -> None:
    """Give the workspace a teacher of POSITIONS positions, and set some keys of its section `evaluate`."""
    config = GPT2Config.from_pretrained(workspace.path / "teacher")
    config.n_positions = POSITIONS
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(workspace.path / "teacher")
    workspace.set(distill={"steps": 1}, evaluate={"probe_blocks": 2, "features": [4], **evaluate})
