"""reports: the page, its Markdown twin, figures, tables and metrics, from the records alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from attnopt.report.compare.page import write_comparison
from attnopt.report.page import write_histories, write_report
from attnopt.report.params import ReportParams

REPORTS = Path("reports")


def run(students: Mapping[str, str], controls: Sequence[str], report: ReportParams) -> None:
    """The sections of params.yaml; without controls those of the kinds softmax and none are."""
    for warning in write_report(Path(), students, report, REPORTS, controls or None):
        print(f"note: {warning}")
    write_histories(Path(), students, REPORTS / "training")
    print(f"the report lies at {REPORTS / 'index.html'}")


def compare(runs: Sequence[str], report: ReportParams) -> None:
    """Several runs on one page, shown as the section `report` of the project here says."""
    print(f"the comparison lies at {write_comparison(runs, report, REPORTS)}")
