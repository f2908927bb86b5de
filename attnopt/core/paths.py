"""Where the stages read and write, relative to the project's folder."""

from pathlib import Path

CORPUS = Path("data/corpus")
TEACHER = Path("data/teacher")
MODELS = Path("models")
LIBRARY = Path("library")
"""Students as attention transfer left them, by variant and seed: what mixes take their layers from."""
CHECKPOINTS = "checkpoints"
"""Beside a student: those that `distill.keep` kept on the way, by step."""
RESULTS = Path("results")
REPORTS = Path("reports")


def checkpoints(student: Path) -> dict[int, Path]:
    """The students kept on the way to one, by step."""
    return dict(sorted((int(folder.name), folder) for folder in (student / CHECKPOINTS).glob("*")))
