"""reports: the page, its Markdown twin, figures, tables and metrics, from the records alone."""

from pathlib import Path

from attnopt import params
from attnopt.report import page


def run() -> None:
    settings = params.load()
    out = Path("reports")
    for warning in page.write(Path(), settings.variants, settings.seeds, settings.report, out):
        print(f"note: {warning}")
    print(f"the report lies at {out / 'index.html'}")
