"""reports: the page, its Markdown twin, figures, tables and metrics, from the records alone."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from attnopt import params
from attnopt.files import written_aside
from attnopt.report import ReportParams, page
from attnopt.report import compare as comparison
from stages import RESULTS

REPORTS = Path("reports")


def run() -> None:
    settings = params.load()
    controls = settings.controls or None
    for warning in page.write(Path(), settings.variants, _seeds(settings), settings.report, REPORTS, controls):
        print(f"note: {warning}")
    _histories(settings)
    print(f"the report lies at {REPORTS / 'index.html'}")


def compare(runs: Sequence[str]) -> None:
    """Several runs on one page, with the `report` section of the project here, where there is one."""
    shown = params.load().report if Path("params.yaml").is_file() else ReportParams()
    print(f"the comparison lies at {comparison.write(runs, shown, REPORTS)}")


def _seeds(settings: params.Params) -> list[int]:
    """Those of any variant."""
    return sorted({seed for name in settings.variants for seed in settings.variant(name).seeds})


def _histories(settings: params.Params) -> None:
    """reports/training: every run's history under a name of its own, for `dvc plots`."""
    with written_aside(REPORTS / "training") as aside:
        aside.mkdir()
        for name in settings.variants:
            for seed in _seeds(settings):
                history = RESULTS / "distill" / name / str(seed) / "history.csv"
                if history.is_file():
                    shutil.copy(history, aside / f"{name}-{seed}.csv")
