"""The pipeline's stages: read inputs, call the library, write outputs. One file is one stage and one subcommand."""

from pathlib import Path

CORPUS = Path("data/corpus")
TEACHER = Path("data/teacher")
MACHINE = Path("data/machine.json")
MODELS = Path("models")
RESULTS = Path("results")
