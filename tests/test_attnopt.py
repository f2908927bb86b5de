"""The package itself: importing it costs nothing, and its names are those of the modules that define them."""

import subprocess
import sys

import pytest
from conftest import ROOT

import attnopt
from attnopt.student.attach import attach, detach
from attnopt.student.swap import Swap


def test_importing_attnopt_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, attnopt; print([m for m in ('torch', 'transformers', 'pydantic') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_its_names_are_those_of_their_modules() -> None:
    assert (attnopt.attach, attnopt.detach, attnopt.Swap) == (attach, detach, Swap)
    assert all(hasattr(attnopt, name) for name in attnopt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        _ = attnopt.atach
