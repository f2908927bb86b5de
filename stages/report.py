"""reports: the page, its Markdown twin, figures, tables and metrics, from the records alone."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from attnopt import settings as params
from attnopt.core.files import written_aside
from attnopt.core.paths import RESULTS
from attnopt.report import page
from attnopt.report.compare import page as comparison
from attnopt.report.params import ReportParams

REPORTS = Path("reports")


def run() -> None:
    settings = params.load_settings()
    controls = settings.controls or None
    for warning in page.write_report(Path(), settings.variants, _seeds(settings), settings.report, REPORTS, controls):
        print(f"note: {warning}")
    _histories(settings)
    print(f"the report lies at {REPORTS / 'index.html'}")


def compare(runs: Sequence[str]) -> None:
    """Several runs on one page, with the `report` section of the project here, where there is one."""
    shown = params.load_settings().report if Path("params.yaml").is_file() else ReportParams()
    print(f"the comparison lies at {comparison.write_comparison(runs, shown, REPORTS)}")


def _seeds(settings: params.Settings) -> list[int]:
    """Those of any variant."""
    return sorted({seed for name in settings.variants for seed in settings.variant(name).seeds})


def _histories(settings: params.Settings) -> None:
    """reports/training: every run's history under a name of its own, for `dvc plots`."""
    with written_aside(REPORTS / "training") as aside:
        aside.mkdir()
        for name in settings.variants:
            for seed in _seeds(settings):
                history = RESULTS / "distill" / name / str(seed) / "history.csv"
                if history.is_file():
                    shutil.copy(history, aside / f"{name}-{seed}.csv")
