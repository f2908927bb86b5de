from pathlib import Path

import pytest

from attnopt.report import ReportParams, page, records
from attnopt.report.context import Context

from . import fake

QUICK = ReportParams(resamples=200)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with synthetic records of every stage and the report made of them."""
    root = tmp_path_factory.mktemp("project")
    page.write(root, fake.write(root), fake.SEEDS, QUICK, root / "reports")
    return root


@pytest.fixture(scope="session")
def context(project: Path) -> Context:
    return Context.of(records.read(project, {name: row[0] for name, row in fake.VARIANTS.items()}, fake.SEEDS), QUICK)
