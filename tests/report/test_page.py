import base64
import html
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from attnopt.core.errors import UserError
from attnopt.records.sample import SampleRecord
from attnopt.report import page
from attnopt.report.render import fill, png

from . import fake
from .conftest import QUICK

pytestmark = pytest.mark.slow


class Links(HTMLParser):
    """Every address that a page names, every id it has, and how many scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("href", "src") and value]
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.scripts += tag == "script"


@pytest.fixture(scope="session")
def index(project):
    return (project / "reports/index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def markdown(project):
    return (project / "reports/report.md").read_text(encoding="utf-8")


def test_the_page_is_one_file_that_needs_no_network(index):
    assert len(index.encode()) < 5_000_000
    links = Links(index)
    assert all(address.startswith(("#", "data:")) for address in links.addresses)
    assert len(links.ids) == len(set(links.ids))
    assert {a[1:] for a in links.addresses if a.startswith("#")} <= set(links.ids)
    assert not re.search(r"@import|url\(", index)


def test_every_table_and_figure_has_its_numbers_and_its_command(index, project):
    links = [a for a in Links(index).addresses if a.startswith("data:text/csv")]
    files = {path.stem: path.read_text(encoding="utf-8") for path in (project / "reports/data").glob("*.csv")}
    shown = [base64.b64decode(link.split(",", 1)[1]).decode() for link in links]
    assert sorted(set(shown)) == sorted(set(files.values()))
    made = "made by <code>dvc repro"
    _, *parts = re.split(r"(?=<table>|<figure )", index)
    assert parts
    assert all(made in part for part in parts), "before the next of them begins"
    named = re.findall(rf'<a download="([^"]+)\.csv" [^>]*>(?:(?!</a>).)*</a> {made}', index)
    assert set(named) == set(files)
    assert len(pd.read_csv(io.StringIO(files["results"]))) == len(fake.VARIANTS)
    assert len(pd.read_csv(io.StringIO(files["blocks"]))) == len(fake.VARIANTS) + 1, "and the teacher"


def test_generated_text_cannot_become_markup(index):
    assert "<b onclick" not in index
    assert index.count("</script>") == Links(index).scripts, "no text ends a script"
    samples = json.loads(re.search(r'id="sample-data">(.*?)</script>', index, re.S)[1])
    assert fake.NASTY in samples[0]["text"]


def test_the_tokens_of_a_text_carry_their_kl():
    assert page.coloured("aéb", ["a", "", "é", "b"], [0.1, 2.0, 0.5, 0.3]) == [("a", 0.1), ("é", 2.0), ("b", 0.3)]
    for tokens, kl in [([], []), (["a"], []), (["a", "b"], [0.1]), (["x"], [0.1])]:
        assert page.coloured("a", tokens, kl) == []


def test_the_colours_end_at_the_95th_percentile_of_the_candidates():
    samples = [{"variant": "masks", "kl": list(range(101))}, {"variant": "none", "kl": [1e3] * 50}]
    assert page.top_kl(samples, ["masks"]) == 95
    assert page.top_kl(samples, []) == 1000
    assert page.top_kl([{"variant": "masks", "kl": []}], ["masks"]) is None


def test_the_page_and_the_download_hold_every_tokens_kl(index, project, context):
    samples = json.loads(re.search(r'id="sample-data">(.*?)</script>', index, re.S)[1])
    assert all("".join(s["pieces"]) == s["text"] and len(s["pieces"]) == len(s["kl"]) for s in samples)
    table = pd.read_csv(project / "reports/data/samples.csv")
    assert json.loads(table["tokens"][0]) == context.records.samples["tokens"][0]
    assert json.loads(table["token_kl"][0]) == pytest.approx(context.records.samples["token_kl"][0], rel=1e-5)


def test_checkpoints_are_in_the_downloads_and_not_in_the_browser(index, project, context):
    shown = json.loads(re.search(r'id="sample-data">(.*?)</script>', index, re.S)[1])
    assert len(shown) == len(context.records.samples)
    for name in ("samples", "figure_coherence"):
        table = pd.read_csv(project / f"reports/data/{name}.csv", dtype={"step": str})
        steps = table.loc[table["variant"] == "masks", "step"]
        assert set(steps) == {"end", "50", "100"}
        assert set(table.loc[table["variant"] == "nsa", "step"]) == {"end"}


@pytest.mark.slow
def test_records_without_tokens_make_a_page_without_colours(tmp_path):
    chosen = fake.write(tmp_path, ["masks"], [0])
    path = tmp_path / "results/sample/masks/0/record.json"
    record = SampleRecord.read(path)
    bare = [sample.model_copy(update={"tokens": [], "token_kl": []}) for sample in record.samples]
    record.model_copy(update={"samples": bare}).write(path)
    page.write_report(tmp_path, chosen, QUICK, tmp_path / "reports")
    assert 'id="scale"' not in (tmp_path / "reports/index.html").read_text(encoding="utf-8")


def test_charts_are_plain_json(index):
    specs = json.loads(re.search(r'id="charts">(.*?)</script>', index, re.S)[1])
    assert {f"figure-{spec['name']}" for spec in specs} <= set(Links(index).ids)
    assert all(spec["alt"] for spec in specs)


def test_markdown_has_relative_images_and_no_markup(markdown, project):
    images = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", markdown)
    assert images
    for _, path in images:
        assert (project / "reports" / path).read_bytes().startswith(b"\x89PNG")
    for path in re.findall(r"(?<!!)\[[^\]]+\]\(([^)]+)\)", markdown):
        assert (project / "reports" / path).is_file()
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", markdown, flags=re.S | re.M)
    assert not re.search(r"</?[a-z]", outside)
    assert fake.NASTY.strip() in markdown


def test_markdown_tables_have_as_many_cells_in_every_row(markdown):
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", markdown, flags=re.S | re.M)
    blocks = re.findall(r"(?:^\|.*\n)+", outside, re.M)
    assert len(blocks) > 8
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_a_cell_of_markdown_is_one_line_that_breaks_only_where_it_may():
    assert fill._cell(" two\nlines |\tand\u2028more ") == "two lines \\| and more"
    assert fill._cell("0.52\u00a0±\u00a00.01 of 8\u202f000") == "0.52\u00a0±\u00a00.01 of 8\u202f000"


@pytest.mark.slow
def test_markdown_has_the_tables_of_the_page_to_the_character(markdown, context):
    for table in page.Report.of(context).tables:
        for cell in (cell for row in table.rows() for cell in row if "\u00a0" in cell):
            assert cell.strip().replace("|", "\\|") in markdown


def test_histories_stand_under_a_name_of_their_own(tmp_path):
    chosen = fake.write(tmp_path, ["masks", "hedgehog"])
    page.write_histories(tmp_path, {**chosen, "absent": "none"}, tmp_path / "training")
    assert {path.name for path in (tmp_path / "training").iterdir()} == {"masks-0.csv", "masks-1.csv", "hedgehog-0.csv"}
    own = tmp_path / "results/distill/masks/1/history.csv"
    assert (tmp_path / "training/masks-1.csv").read_bytes() == own.read_bytes()


@pytest.mark.slow
def test_page_and_markdown_say_the_same(index, markdown, context):
    seen = html.unescape(re.sub(r"<[^>]+>", "", index))
    for answer in page.Report.of(context).answers:
        assert answer.short in markdown
        assert answer.short.replace("**", "") in seen


def test_metrics_are_numbers_by_variant(project):
    metrics = json.loads((project / "reports/metrics.json").read_text())
    assert set(metrics) == set(fake.VARIANTS)
    assert all(isinstance(value, float | int) for row in metrics.values() for value in row.values())
    assert {"kl", "kl_se", "ppl_ratio", "top1", "sample_ppl", "decode_ms_ratio"} <= set(metrics["nsa"])
    assert {"kl_1024", "ppl_ratio_last_1024", "copy_retention"} <= set(metrics["nsa"])


@pytest.mark.slow
def test_the_same_records_give_the_same_files(tmp_path):
    few = ["masks", "none"]
    chosen = fake.write(tmp_path, few)
    files = []
    for name in ("a", "b"):
        page.write_report(tmp_path, chosen, QUICK, tmp_path / name)
        files.append(
            {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        )
    assert files[0] == files[1]


def test_no_process_is_forked_beside_threads_of_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", sys)
    monkeypatch.setattr(png, "ProcessPoolExecutor", None)
    chosen = fake.write(tmp_path, ["none"])
    page.write_report(tmp_path, chosen, QUICK, tmp_path / "reports")
    assert len(list((tmp_path / "reports/figures").glob("*.png"))) > 1


def test_a_report_that_fails_leaves_the_old_one(tmp_path):
    chosen = fake.write(tmp_path, ["none"])
    out = tmp_path / "reports"
    page.write_report(tmp_path, chosen, QUICK, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (tmp_path / "results/evaluate/none/0/record.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        page.write_report(tmp_path, chosen, QUICK, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "stage", ["evaluate", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("distill", "sample", "bench"))]
)
def test_one_stages_records_alone_make_a_page(tmp_path, stage):
    chosen = fake.write(tmp_path, ["masks", "performer"], [0])
    for other in {"distill", "evaluate", "sample", "bench"} - {stage}:
        (tmp_path / "results" / other).rename(tmp_path / other)
    page.write_report(tmp_path, chosen, QUICK, tmp_path / "reports")
    assert "Not from this run" in (tmp_path / "reports/index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_no_model_library_is_loaded_by_the_stage(tmp_path):
    """Not only at the import: the whole stage runs, writes every file, and neither of them is there."""
    chosen = fake.write(tmp_path, ["softmax", "masks", "performer"])
    code = (
        "import sys; from attnopt.report.params import ReportParams; import stages.report;"
        f"stages.report.run({chosen!r}, ['softmax'], ReportParams(resamples=100));"
        "stages.report.compare(['.', '.'], ReportParams(resamples=100));"
        "sys.exit(str({'torch', 'transformers'} & set(sys.modules)))"
    )
    command, root = [sys.executable, "-c", code], Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.stderr.strip().splitlines()[-1] == "set()", ended.stderr
    found = {path.name for path in (tmp_path / "reports").iterdir()}
    assert {"index.html", "report.md", "metrics.json", "data", "figures", "training", "compare.html"} <= found


def test_names_of_variants_cannot_become_markup(tmp_path):
    """In the first screen, headings of groups and the figures' selectors too."""
    chosen = fake.write(tmp_path, ["softmax", "based", "window"], [0])
    nasty = "<i onclick=x()>"
    for stage in ("distill", "evaluate", "sample", "bench"):
        (tmp_path / "results" / stage / "based").rename(tmp_path / "results" / stage / nasty)
    page.write_report(tmp_path, {nasty if v == "based" else v: k for v, k in chosen.items()}, QUICK, tmp_path / "out")
    text = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert "choose <strong>&lt;i onclick=x()&gt;</strong>" in text
    assert nasty not in text
