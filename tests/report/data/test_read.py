"""Records as tables; and that a record of another shape is refused by file and key, never read as an empty cell."""

import csv
import json
from pathlib import Path

import pytest

from attnopt.core.errors import UserError
from attnopt.report.data import files
from attnopt.report.data import read as records
from attnopt.report.params import ReportParams

from .. import fake

FEW = ["softmax", "masks", "performer_bidirectional"]
KINDS = {
    "distill": "results/distill/masks/0/record.json",
    "evaluate": "results/evaluate/masks/0/record.json",
    "sample": "results/sample/masks/0/record.json",
    "bench": "results/bench/masks/record.json",
    "corpus": "data/corpus/manifest.json",
    "teacher": "data/teacher/manifest.json",
}
"""One of each kind of record that is a JSON file."""
PLACES = [
    *[("distill", place) for place in ("", "environment", "budget", "phases.0")],
    *[("evaluate", place) for place in ("", "splits.test", "splits.test.kl_by_class.0", "layers.0", "pruned.0")],
    *[("evaluate", place) for place in ("checkpoints.0", "checkpoints.0.splits.test", "environment")],
    *[("sample", place) for place in ("", "samples.0", "checkpoints.0", "checkpoints.0.samples.0")],
    *[("bench", place) for place in ("", "measurements.0", "environment")],
    *[("corpus", place) for place in ("", "splits.test")],
    *[("teacher", place) for place in ("", "config", "splits.test")],
]
"""Every kind of row in them."""
TABLES = {"history.csv": "valid_kl", "coefficients.csv": "value"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fake.write(tmp_path, FEW)
    return tmp_path


def read(root: Path, variants=FEW) -> records.Records:
    return records.read_records(root, {name: fake.VARIANTS[name][0] for name in variants})


def change(path: Path, edit) -> None:
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


def at(content, place: str):
    """The mapping at a place such as splits.test.kl_by_class.0."""
    for part in filter(None, place.split(".")):
        content = content[int(part) if part.isdigit() else part]
    return content


def renamed(row: dict, key: str, name: str) -> None:
    row[name] = row.pop(key)


def dotted(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as refused:
        read(root)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_every_table_is_read(root):
    run = read(root)
    assert len(run.runs) == 6
    assert len(run.quality) == 12
    assert len(run.samples) == 6 * len(fake.PROMPTS)
    assert set(run.coefficients["name"]) == set(fake.CANDIDATES)
    assert run.positions.groupby(["variant", "seed", "split"]).size().unique().tolist() == [127]
    assert run.phases.groupby(["variant", "seed"])["phase"].apply(list).tolist() == [["transfer", "distill"]] * 4
    assert set(run.runs["budget_tokens"]) == {204_800}
    assert set(run.classes["class"]) >= {"new", "pair seen before"}
    assert run.leaks == {"performer_bidirectional"}
    assert run.candidates == ["masks"]
    assert run.controls == ["softmax"]
    assert (run.corpus.block, run.teacher.config.parameters) == (128, 4_400_000)


@pytest.mark.parametrize(("kind", "place"), PLACES)
def test_a_key_that_is_not_there_is_named_with_its_file(root, kind, place):
    """Every key of every kind of row, those with a default too: each is taken away once."""
    path = root / KINDS[kind]
    whole = path.read_text()
    kinds = {"distill": files.DistillRecord, "evaluate": files.EvaluateRecord, "sample": files.SampleRecord}
    kinds |= {"bench": files.BenchRecord, "corpus": records.CorpusManifest, "teacher": records.TeacherManifest}
    keys = [key for key in at(json.loads(whole), place) if (kind, place, key) not in EXTRAS]
    assert keys
    for key in keys:
        change(path, lambda record, key=key: at(record, place).pop(key))
        with pytest.raises(UserError) as refused:
            kinds[kind].read(path)
        missing = "its format is None" if dotted(place, key) == "format" else f"'{dotted(place, key)}' is missing"
        assert str(refused.value).startswith(f"{path}: {missing}"), key
        path.write_text(whole)


EXTRAS = {("distill", "budget", key) for key in ("lr", "train")}
"""Keys of the section `distill`, which a budget repeats whatever they are."""


@pytest.mark.parametrize(("kind", "place"), PLACES)
def test_a_renamed_key_stops_the_report_and_not_a_cell(root, kind, place):
    path = root / KINDS[kind]
    key = next(key for key in at(json.loads(path.read_text()), place) if key != "format")
    change(path, lambda record: renamed(at(record, place), key, f"{key}_anew"))
    said = refusal(root)
    assert said.startswith(f"{path}: ")
    assert f"'{dotted(place, key)}" in said


@pytest.mark.parametrize(("kind", "place"), [pair for pair in PLACES if pair != ("distill", "budget")])
def test_an_added_key_is_named_with_its_file(root, kind, place):
    path = root / KINDS[kind]
    change(path, lambda record: at(record, place).update(surplus=1))
    assert refusal(root).startswith(f"{path}: unknown key '{dotted(place, 'surplus')}'")


@pytest.mark.parametrize("kind", KINDS)
def test_another_format_is_refused(root, kind):
    path = root / KINDS[kind]
    known = json.loads(path.read_text())["format"]
    change(path, lambda record: record.update(format=known + 1))
    assert refusal(root).startswith(f"{path}: its format is {known + 1}, this version reads {known}: run `dvc repro")


@pytest.mark.parametrize("name", TABLES)
def test_a_column_that_is_missing_renamed_or_added_is_named_with_its_file(root, name):
    path = root / "results/distill/masks/0" / name
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)

    def written(columns: list[str], cells: list[list[str]]) -> str:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *cells])
        return refusal(root)

    place = header.index(TABLES[name])
    fewer = [row[:place] + row[place + 1 :] for row in rows]
    assert written(header[:place] + header[place + 1 :], fewer).startswith(
        f"{path}: it lacks the column {TABLES[name]}"
    )
    anew = [*header[:place], "anew", *header[place + 1 :]]
    assert written(anew, rows).startswith(f"{path}: it lacks the column {TABLES[name]} and has anew")
    assert written([*header, "surplus"], [[*row, "1"] for row in rows]).startswith(f"{path}: it has the column surplus")
    assert written(header[::-1], rows).startswith(f"{path}: its columns are in another order")


def test_a_cell_that_is_no_number_is_named_with_its_column(root):
    path = root / "results/distill/masks/0/history.csv"
    path.write_text(path.read_text().replace(",0.0,900.0,", ",fast,900.0,", 1))
    assert f"{path}: 'cpu_s' is 'fast'" in refusal(root)


def test_the_history_and_both_manifests_must_be_there(root):
    for name in ("results/distill/masks/0/history.csv", KINDS["corpus"], KINDS["teacher"]):
        kept = (root / name).read_text()
        (root / name).unlink()
        assert refusal(root).startswith(f"{root / name} is missing: run `dvc repro")
        (root / name).write_text(kept)


def test_coefficients_are_read_only_where_there_are_any(root):
    assert set(read(root).coefficients["variant"]) == {"masks"}
    (root / "results/distill/masks/0/coefficients.csv").unlink()
    assert set(read(root).coefficients["seed"]) == {1}


def test_checkpoints_are_read_beside_the_final_students(root):
    run = read(root)
    of_masks = run.checkpoints[run.checkpoints["variant"] == "masks"]
    assert of_masks.groupby(["seed", "split"])["step"].apply(list).tolist() == [[50, 100]] * 4
    final = run.quality[(run.quality["variant"] == "masks") & (run.quality["split"] == "test")]["kl_forward"]
    early = of_masks[(of_masks["step"] == 50) & (of_masks["split"] == "test")]["kl_forward"]
    assert early.tolist() == pytest.approx([fake.KEPT[50] * kl for kl in final])
    assert run.checkpoint_samples.groupby(["variant", "seed", "step"]).size().unique().tolist() == [2]
    assert set(run.checkpoint_samples["variant"]) == {"masks", "performer_bidirectional"}


def test_records_without_checkpoints_are_read(root):
    for stage in ("evaluate", "sample"):
        for path in root.glob(f"results/{stage}/*/*/record.json"):
            change(path, lambda record: record.update(checkpoints=[]))
    run = read(root)
    assert not len(run.checkpoints)
    assert not len(run.checkpoint_samples)
    assert len(run.samples) == 6 * len(fake.PROMPTS)


def test_a_number_that_nothing_gave_is_no_number_in_its_table(root):
    change(root / KINDS["evaluate"], lambda record: record["splits"]["test"].update(kl_forward_se=None))
    quality = read(root).quality
    assert quality["kl_forward_se"].dtype == float
    assert quality["kl_forward_se"].isna().sum() == 1
    assert quality["tokens"].dtype == int


def test_the_controls_are_those_that_were_named(root):
    run = records.read_records(root, {name: fake.VARIANTS[name][0] for name in FEW}, controls=["masks"])
    assert run.controls == ["masks"]
    assert run.candidates == ["softmax"], "the leaking one competes no more than before"


def test_only_listed_variants_are_read_with_the_seeds_that_they_have(root):
    run = read(root, ["masks"])
    assert set(run.quality["variant"]) == {"masks"}
    assert set(run.quality["seed"]) == {0, 1}
    (root / "results/evaluate/masks/1").rename(root / "results/evaluate/masks/12")
    (root / "results/evaluate/masks/.0.partial").mkdir()
    assert set(read(root, ["masks"]).quality["seed"]) == {0, 12}


def test_nothing_under_results_is_changed_by_reading(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    read(root, ["masks"])
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_stage_without_a_record_is_an_empty_table(root):
    for stage in ("distill", "sample", "bench"):
        (root / "results" / stage).rename(root / stage)
    run = read(root)
    assert len(run.quality) == 12
    for table in (run.runs, run.phases, run.history, run.samples, run.bench, run.capacity):
        assert not len(table)
        assert "variant" in table
    assert run.sampling == {}
    gaps = [w for w in records.record_warnings(run) if w.startswith("No ")]
    assert gaps == [f"No {stage} record of {', '.join(FEW)}." for stage in ("distill", "sample", "bench")]


def test_nothing_recorded_is_the_users_to_mend(tmp_path):
    with pytest.raises(UserError, match="dvc repro"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["record.json", "history.csv"])
def test_a_damaged_file_is_named(root, name):
    path = root / "results/distill/masks/0" / name
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(UserError, match=name):
        read(root)


def test_half_a_surrogate_pair_in_a_text_is_readable(root):
    path = root / "results/sample/masks/0/record.json"
    change(path, lambda record: record["samples"][0].update(text="half \ud83d pair"))
    read(root).samples["text"].str.encode("utf-8")


def test_the_memory_that_capacities_are_for_is_the_reports(root):
    kinds = {name: fake.VARIANTS[name][0] for name in FEW}
    small, large = (records.read_records(root, kinds, ReportParams(memory_gib=gib)).capacity for gib in (1.0, 2.0))
    assert set(small["memory_gib"]) == {1.0}
    assert (large["sequences"] > small["sequences"]).all()
    assert set(read(root).capacity["memory_gib"]) == {16.0}


def test_records_of_several_machines_are_pointed_out(root):
    assert records.record_warnings(read(root)) == []
    path = root / "results/bench/masks/record.json"
    change(path, lambda record: record["environment"].update(cpu="Another CPU"))
    assert any("2 machines" in w and "Another CPU" in w for w in records.record_warnings(read(root)))


def test_noise_and_gaps_are_pointed_out(root):
    change(root / "results/bench/masks/record.json", lambda record: record["measurements"][0].update(noisy=True))
    (root / "results/sample/softmax/0/record.json").unlink()
    (root / "results/sample/softmax/1/record.json").unlink()
    (root / "results/evaluate/masks/1/record.json").unlink()
    found = records.record_warnings(read(root))
    assert any(w.startswith("1 of") and "noisy" in w for w in found)
    assert "No sample record of softmax." in found
    assert "No evaluate record of masks, seed 1." in found
