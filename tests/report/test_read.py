import json
from pathlib import Path

import pytest

from attnopt.core.errors import UserError
from attnopt.report.data import read as records

from . import fake

FEW = ["softmax", "masks", "performer_bidirectional"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fake.write(tmp_path, FEW)
    return tmp_path


def read(root: Path, variants=FEW, seeds=(0, 1)) -> records.Records:
    return records.read_records(root, {name: fake.VARIANTS[name][0] for name in variants}, seeds)


def change(path: Path, edit) -> None:
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


def test_every_table_is_read(root):
    run = read(root)
    assert len(run.runs) == 6
    assert len(run.quality) == 12
    assert len(run.samples) == 6 * len(fake.PROMPTS)
    assert set(run.coefficients["name"]) == set(fake.CANDIDATES)
    assert run.positions.groupby(["variant", "seed", "split"]).size().unique().tolist() == [127]
    assert run.leaks == {"performer_bidirectional"}
    assert run.candidates == ["masks"]
    assert run.controls == ["softmax"]


def test_checkpoints_are_read_beside_the_final_students(root):
    run = read(root)
    of_masks = run.checkpoints[run.checkpoints["variant"] == "masks"]
    assert of_masks.groupby(["seed", "split"])["step"].apply(list).tolist() == [[50, 100]] * 4
    final = run.quality[(run.quality["variant"] == "masks") & (run.quality["split"] == "test")]["kl_forward"]
    early = of_masks[(of_masks["step"] == 50) & (of_masks["split"] == "test")]["kl_forward"]
    assert early.tolist() == pytest.approx([fake.KEPT[50] * kl for kl in final])
    assert run.checkpoint_samples.groupby(["variant", "seed", "step"]).size().unique().tolist() == [2]
    assert set(run.checkpoint_samples["variant"]) == {"masks", "performer_bidirectional"}


@pytest.mark.parametrize("empty", [True, False])
def test_records_without_checkpoints_are_read(root, empty):
    for path in root.glob("results/*/*/*/record.json"):
        change(path, lambda record: record.update(checkpoints=[]) if empty else record.pop("checkpoints", None))
    run = read(root)
    assert not len(run.checkpoints)
    assert not len(run.checkpoint_samples)
    assert len(run.samples) == 6 * len(fake.PROMPTS)


def test_the_controls_are_those_that_were_named(root):
    run = records.read_records(root, {name: fake.VARIANTS[name][0] for name in FEW}, [0], ["masks"])
    assert run.controls == ["masks"]
    assert run.candidates == ["softmax"], "the leaking one competes no more than before"


def test_only_listed_variants_and_seeds_are_read(root):
    run = read(root, ["masks"], [1])
    assert set(run.quality["variant"]) == {"masks"}
    assert set(run.quality["seed"]) == {1}


def test_results_of_unlisted_variants_are_deleted_and_nothing_else(root):
    (root / "results" / "notes.txt").write_text("mine")
    gone = records.prune_results(root, ["masks", "softmax"])
    assert {p.relative_to(root).as_posix() for p in gone} == {
        f"results/{stage}/performer_bidirectional" for stage in records.STAGES
    }
    assert (root / "results/distill/masks/0/record.json").is_file()
    assert (root / "results/notes.txt").is_file()


def test_what_was_not_recorded_is_an_empty_table(tmp_path):
    fake._json(tmp_path / "results/evaluate/masks/0/record.json", {"splits": {"test": {"kl_forward": 0.5}}})
    run = read(tmp_path)
    assert run.quality["kl_forward"].tolist() == [0.5]
    assert run.quality["kl_forward_se"].isna().all()
    assert not len(run.bench)
    assert not len(run.samples)


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


def test_records_of_several_machines_are_pointed_out(root):
    assert records.record_warnings(read(root)) == []
    path = root / "results/bench/masks/record.json"
    change(path, lambda record: record["environment"].update(cpu="Another CPU"))
    assert any("2 machines" in w and "Another CPU" in w for w in records.record_warnings(read(root)))


def test_noise_and_gaps_are_pointed_out(root):
    change(root / "results/bench/masks/record.json", lambda record: record["measurements"][0].update(noisy=True))
    (root / "results/sample/softmax/0/record.json").unlink()
    (root / "results/sample/softmax/1/record.json").unlink()
    found = records.record_warnings(read(root))
    assert any(w.startswith("1 of") and "noisy" in w for w in found)
    assert "No sample record of softmax." in found
