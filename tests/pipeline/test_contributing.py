"""CONTRIBUTING.md's mechanism in one file, done as it says, in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Workspace


@pytest.fixture
def copied(workspace: Workspace) -> Workspace:
    """The workspace with a copy of the code, and in it the file that CONTRIBUTING.md prints."""
    for room in ("attnopt", "stages"):
        shutil.copytree(ROOT / room, workspace.path / room, ignore=shutil.ignore_patterns("__pycache__"))
    block = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert block
    (workspace.path / "attnopt" / "mechanisms" / "recency.py").write_text(block[1])
    return workspace


def attnopt(*arguments: str) -> str:
    env = os.environ | {"PYTHONPATH": str(Path.cwd()), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run([sys.executable, "-m", "attnopt.cli", *arguments], capture_output=True, text=True, env=env)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_one_file_and_one_section_make_a_variant(copied: Workspace) -> None:
    copied.set(variants={"recency": "recency"}, recency={"rate": 0.9})
    table = attnopt("conform", "recency")
    assert "FAIL" not in table
    assert "causality" in table
    assert "rate = 0.9" in attnopt("mechanisms")
    for stage in ("tokenize", "cache-logits", "distill recency", "evaluate recency", "sample recency"):
        attnopt(*stage.split())
    assert Path("results/evaluate/recency/0/record.json").is_file()
