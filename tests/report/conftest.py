from pathlib import Path

import pytest

from attnopt.report import page
from attnopt.report.compare import page as compare
from attnopt.report.context import Context
from attnopt.report.data.read import read_records
from attnopt.report.params import ReportParams

from . import fake, swept

QUICK = ReportParams(resamples=200)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with synthetic records of every stage."""
    root = tmp_path_factory.mktemp("project")
    fake.write(root)
    return root


@pytest.fixture(scope="session")
def project(recorded: Path) -> Path:
    """The same folder with the report made of them."""
    page.write_report(recorded, {name: row[0] for name, row in fake.VARIANTS.items()}, QUICK, recorded / "reports")
    return recorded


@pytest.fixture(scope="session")
def context(recorded: Path) -> Context:
    return Context.of(read_records(recorded, {name: row[0] for name, row in fake.VARIANTS.items()}, QUICK), QUICK)


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of three runs that differ in performer.features, and in `reports` their comparison."""
    root = tmp_path_factory.mktemp("sweep")
    runs = [swept.write(root / str(features), features, kl) for features, kl in ((256, 0.41), (64, 0.66), (128, 0.43))]
    compare.write_comparison([str(run) for run in runs], QUICK, root / "reports")
    return root
