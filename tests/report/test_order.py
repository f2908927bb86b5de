"""The report's rooms lie above each other: an import goes down or stays, and never in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

REPORT = Path(__file__).parents[2] / "attnopt" / "report"
ORDER = ["params", "data", "parts", "render", "context", "questions", "published", "overview", "page", "compare"]
"""From the lowest to the highest."""
BELOW = ("attnopt.core", "attnopt.records", "attnopt.statistics")


def imports(path: Path) -> set[str]:
    """The modules of the project that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inner if exists(name)}
            found |= modules | ({node.module} if modules != inner else set())
    return {name for name in found if name.startswith(("attnopt", "stages"))}


def exists(module: str) -> bool:
    path = REPORT.parents[1] / module.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def name_of(path: Path) -> str:
    parts = path.relative_to(REPORT.parents[1]).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


GRAPH = {name_of(path): imports(path) for path in REPORT.rglob("*.py")}


def test_every_file_has_its_place_in_the_order():
    assert {name.split(".")[2] for name in GRAPH if name != "attnopt.report"} == set(ORDER)


def test_imports_go_down():
    for name, needed in GRAPH.items():
        for other in needed:
            if other.startswith("attnopt.report."):
                assert ORDER.index(other.split(".")[2]) <= ORDER.index(name.split(".")[2]), f"{name} imports {other}"


def test_the_report_needs_records_and_no_other_chapter():
    for name, needed in GRAPH.items():
        others = {other for other in needed if not other.startswith(("attnopt.report", *BELOW))}
        assert others == set(), f"{name} imports {others}"


def test_no_two_files_need_each_other():
    list(TopologicalSorter(GRAPH).static_order())
