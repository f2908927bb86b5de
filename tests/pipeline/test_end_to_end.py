"""Every real stage on a tiny teacher and text, then the report from what they wrote: its page shows their numbers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import Workspace, small_world

from attnopt.core.files import read_json
from attnopt.records.bench import BenchRecord
from attnopt.records.distill import DistillRecord
from attnopt.records.evaluate import EvaluateRecord
from attnopt.records.sample import SampleRecord
from attnopt.report.parts import formats

pytestmark = pytest.mark.slow
VARIANTS = {
    "softmax": "softmax",
    "none": "none",
    "masks": "masks",
    "performer": "performer",
    "hybrid": "hedgehog",
    "leaking": "performer_bidirectional",
}
MIX = {"layers": {0: "masks", 1: "hybrid"}}
STUDENTS = [*VARIANTS, "mix"]
BENCH = {
    "lengths": [16, 32],
    "operation_lengths": [48],
    "min_iterations": 2,
    "min_seconds": 0,
    "max_spread": 1e9,
    "phases": ["prefill", "decode"],
    "decode_tokens": 2,
    "threads": 1,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project in which every stage has run once."""
    with pytest.MonkeyPatch.context() as patched:
        workspace = small_world(tiny, tmp_path_factory.mktemp("finished"), patched)
        _run(workspace)
        yield workspace.path


def _run(workspace: Workspace) -> None:
    workspace.set(
        variants=VARIANTS,
        mixes={"mix": MIX},
        controls=["softmax", "none"],
        transfer={"steps": 2},
        distill={"steps": 4, "keep": [0.5]},
        evaluate={
            "probe_blocks": 2,
            "features": [4, 8],
            "draws": 2,
            "lengths": [64],
            "recall": {"copy": [0]},
            "items": 4,
        },
        search={"budgets": [0.7], "length": 32, "blocks": 2, "pairs": 2, "items": 2, "draws": 4, "held_out": 3},
        sample={"recall": {"copy": [8]}, "items": 3},
        bench=BENCH,
        report={"lengths": [32], "resamples": 100},
        masks={"candidates": ["last:1", "window:4"]},
        performer={"features": 8},
        hybrid={"window": 4, "feature_dim": 16},
        leaking={"features": 8, "distill": {"ce_weight": 1.0}},
    )
    workspace.run("tokenize", "cache-logits", *(f"distill {name}" for name in VARIANTS))
    workspace.run("mix mix", "search", "evaluate", "sample", *(f"bench {n}" for n in STUDENTS), "report")


def test_the_page_shows_the_numbers_that_the_stages_wrote(finished: Path) -> None:
    page = (finished / "reports/index.html").read_text(encoding="utf-8")
    markdown = (finished / "reports/report.md").read_text(encoding="utf-8")
    metrics = read_json(finished / "reports/metrics.json")
    for name in STUDENTS:
        quality = EvaluateRecord.read(finished / f"results/evaluate/{name}/0/record.json").splits["test"]
        training = DistillRecord.read(finished / f"results/distill/{name}/0/record.json")
        rows = BenchRecord.read(finished / f"results/bench/{name}/record.json").measurements
        wanted = ("model", "decode", 32, "variant")
        decode = next(m for m in rows if (m.level, m.phase, m.length, m.subject) == wanted)
        assert metrics[name]["kl"] == pytest.approx(quality.kl_forward, rel=1e-4, abs=1e-6)
        assert metrics[name]["trained_parameters"] == training.trained_parameters
        shown = [
            formats.plus_minus(quality.kl_forward, quality.kl_forward_se),
            formats.times(quality.ppl_ratio),
            formats.number(decode.median),
        ]
        for text in shown:
            assert text in page, (name, text)
            assert text in markdown, (name, text)
        sample = SampleRecord.read(finished / f"results/sample/{name}/0/record.json").samples[0]
        assert json.dumps(sample.text, ensure_ascii=False)[1:-1].split("\\")[0].strip() in page


def test_every_part_of_the_records_reaches_the_page(finished: Path) -> None:
    """No question of the report is unanswerable for want of a record; and none of its tables is of dashes alone."""
    markdown = (finished / "reports/report.md").read_text(encoding="utf-8")
    for part in ("coefficients", "branches", "checkpoint", "seen before", "layer", "evenly interleaved"):
        assert part in markdown
    for table in (finished / "reports/data").glob("*.csv"):
        lines = table.read_text(encoding="utf-8").splitlines()
        assert len(lines) > 1, table.name


def test_what_a_memory_holds_is_computed_from_the_measurements(finished: Path) -> None:
    """16 GiB less the weights, over the larger of state and peak: with one batch size measured."""
    table = pd.read_csv(finished / "reports/data/capacity.csv").set_index("variant")
    for name in set(STUDENTS) - {"softmax"}:
        rows = BenchRecord.read(finished / f"results/bench/{name}/record.json").measurements
        wanted = ("model", "decode", 32, "variant")
        m = next(m for m in rows if (m.level, m.phase, m.length, m.subject) == wanted)
        each = max((m.peak_mib or 0) * 2**20, m.state_bytes or 0)
        if each:
            expected = (16 * 2**30 - (m.weight_bytes or 0)) / each
            assert table.loc[name, "sequences"] == pytest.approx(expected, rel=1e-4, abs=1)
