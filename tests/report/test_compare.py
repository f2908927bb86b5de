import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from attnopt.core.errors import UserError
from attnopt.report.compare import page as compare
from attnopt.report.compare import runs
from attnopt.report.compare.data import Comparison

from . import fake, swept
from .conftest import QUICK

pytestmark = pytest.mark.slow


def compared(*folders: Path) -> Comparison:
    return Comparison([runs.read_run(str(folder), QUICK) for folder in folders])


@pytest.fixture(scope="module")
def three(sweep) -> Comparison:
    return compared(sweep / "256", sweep / "64", sweep / "128")


def test_runs_are_labelled_by_what_differs(three, sweep):
    assert three.differing == {"performer.features": [256, 64, 128]}
    assert three.labels == ["performer.features: 256", "performer.features: 64", "performer.features: 128"]
    again = compared(sweep / "64", sweep / "64", sweep / "128")
    assert again.labels[0] == f"performer.features: 64 ({sweep / '64'})", "the same setting twice"
    assert compared(sweep / "64", sweep / "64").labels == [str(sweep / "64")] * 2


def test_the_table_has_every_variant_and_run(three):
    frame = three.frame.set_index(["variant", "run"])
    assert len(frame) == 12
    assert list(frame.loc["performer"]["kl"]) == [0.41, 0.66, 0.43]
    assert three.moved == ["performer"]
    assert frame.loc[("masks", 0), "decode_ms"] == frame.loc[("masks", 2), "decode_ms"]
    assert frame["state"].notna().any()


def test_sentences_follow_the_numbers(three, sweep):
    assert three.short.startswith("3 runs that differ in `performer.features` alone.")
    assert "**performer**’s 0.410\u00a0±\u00a00.020, with performer.features: 256" in three.short
    told, still = three.sentences
    assert "lowest with performer.features: 256" in told
    assert "highest with performer.features: 64" in told
    assert "is more than 1.96 standard errors" in told
    assert still == "The same in every run: softmax, masks and performer_bidirectional."
    near = compared(sweep / "256", sweep / "128").sentences[0]
    assert "is within 1.96 standard errors" in near
    same = compared(sweep / "64", sweep / "64")
    assert same.moved == []
    assert same.sentences == ["The same in every run: softmax, masks, performer and performer_bidirectional."]


def test_the_figure_runs_over_the_setting_in_order(three):
    (figure,) = compare.figures(three)
    panel = figure.views[0].panels[0]
    (series,) = panel.series
    assert panel.x.label == "performer.features"
    assert list(zip(series.x, series.y, strict=True)) == [(64, 0.66), (128, 0.43), (256, 0.41)]
    assert len(figure.views[0].panels) == 4


def test_two_settings_give_rows_in_the_place_of_an_axis(sweep, tmp_path):
    other = shutil.copytree(sweep / "64", tmp_path / "other")
    text = (other / "params.yaml").read_text().replace("features: 64", "features: 32")
    (other / "params.yaml").write_text(text + "corpus:\n  block: 64\n")
    both = compared(sweep / "128", other)
    assert both.numeric is None
    assert both.labels == ["performer.features: 128, corpus.block: –", "performer.features: 32, corpus.block: 64"]
    assert compare.figures(both)[0].views[0].panels[0].y.categories == both.labels
    assert "corpus.block" in both.warnings[0]
    assert both.limits


def test_what_one_run_lacks_is_said_of_candidates_alone(sweep, tmp_path):
    other = shutil.copytree(sweep / "64", tmp_path / "other")
    for path in [*other.glob("results/*/masks"), *other.glob("results/*/softmax")]:
        shutil.rmtree(path)
    both = compared(sweep / "64", other)
    assert set(both.moved) == {"masks", "softmax"}
    assert both.sentences[0] == f"**masks**: Only in {sweep / '64'}."
    assert len(both.sentences) == 2


def test_timings_of_two_machines_are_not_compared_in_silence(sweep, tmp_path):
    other = shutil.copytree(sweep / "64", tmp_path / "other")
    for path in other.glob("results/bench/*/record.json"):
        path.write_text(path.read_text().replace(fake.ENVIRONMENT.cpu, "Another CPU"))
    assert "Another CPU" in compared(sweep / "64", other).warnings[0]


def test_page_markdown_and_downloads_agree(sweep, three):
    reports = sweep / "reports"
    text, page = (reports / "compare.md").read_text(), (reports / "compare.html").read_text()
    for sentence in [three.short, *three.sentences]:
        assert sentence in text
        assert re.sub(r"[*`]", "", sentence) in re.sub(r"<[^>]+>", "", page)
    for path in re.findall(r"\]\(([^)]+)\)", text):
        assert (reports / path).is_file()
    table = pd.read_csv(reports / "compare/compare_results.csv")
    assert set(table["performer.features"]) == {64, 128, 256}
    assert not re.search(r"https?://(?!www\.w3\.org)", page)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no params.yaml"),
        ({"params.yaml": "seeds: [0]"}, "names no variants"),
        ({"params.yaml": "variants: {a: none}"}, "no results"),
    ],
)
def test_a_folder_that_is_no_run_is_refused(tmp_path, content, message):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        runs.read_run(str(tmp_path), QUICK)


def test_a_record_that_does_not_fit_is_named_by_its_run_and_its_place_there(sweep, tmp_path):
    other = shutil.copytree(sweep / "64", tmp_path / "other")
    path = other / "results/evaluate/masks/0/record.json"
    path.write_text(path.read_text().replace('"jsd"', '"js"', 1))
    with pytest.raises(UserError) as refused:
        runs.read_run(str(other), QUICK)
    place = path.relative_to(other)
    assert str(refused.value).startswith(f"{other}: {place}: 'splits.valid.jsd' is missing: run `dvc repro evaluate`")


def command(folder: Path, *arguments: str) -> tuple[int, str]:
    code = "from attnopt.cli import main; main()"
    found = subprocess.run(
        [sys.executable, "-c", code, "report", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    return found.returncode, found.stderr.strip()


@pytest.mark.slow
def test_one_run_is_not_a_comparison(sweep):
    code, message = command(sweep, "--compare", "64")
    assert (code, message) == (
        2,
        "attnopt: --compare takes two or more runs: folders, git revisions or experiments' names",
    )
    code, message = command(sweep, "--compare", "64", "nosuch")
    assert (code, message.count("\n")) == (2, 0)
    assert message.startswith("attnopt: unknown run 'nosuch'")


@pytest.mark.slow
def test_revisions_are_read_from_the_cache_and_the_workspace_stays(tmp_path, monkeypatch):
    from dvc.repo import Repo
    from scmrepo.git import Git

    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{name}_NAME", "someone")
        monkeypatch.setenv(f"{name}_EMAIL", "someone@example.com")
    Git.init(str(tmp_path)).close()
    monkeypatch.chdir(tmp_path)
    with Repo.init() as repo:
        for features, kl in ((64, 0.66), (128, 0.43)):
            shutil.rmtree(tmp_path / "results", ignore_errors=True)
            swept.write(tmp_path, features, kl)
            repo.add(["results", "data"])
            repo.scm.add([".dvc", "results.dvc", "data.dvc", "params.yaml", ".gitignore"])
            repo.scm.commit(f"{features} features")
            repo.scm.tag(f"f{features}")
        swept.write(tmp_path, 256, 0.3)
        repo.add(["results", "data"])
        (tmp_path / "dvc.yaml").write_text("stages: {}\n")
        repo.experiments.save(name="wide")
    swept.write(tmp_path, 512, 0.2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/**/*.json")}
    four = Comparison([runs.read_run(revision, QUICK) for revision in ("f64", "f128", "wide", ".")])
    assert four.differing == {"performer.features": [64, 128, 256, 512]}
    assert list(four.frame.set_index("variant").loc["performer"]["kl"]) == [0.66, 0.43, 0.3, 0.2]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/**/*.json")} == before
    with pytest.raises(UserError, match="unknown run 'nosuch'"):
        runs.read_run("nosuch", QUICK)
    shutil.rmtree(tmp_path / ".dvc/cache")
    with pytest.raises(UserError, match="f64: its results are not in DVC's cache"):
        runs.read_run("f64", QUICK)
