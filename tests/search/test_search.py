"""The stage: the library scored, mixes found within budgets, rivals beside them, on the tiny teacher."""

from pathlib import Path

import pytest
import torch
from conftest import Workspace

from attnopt import settings as params
from attnopt.core.errors import UserError
from attnopt.records.search import SearchRecord
from attnopt.search.mixable import Mixable
from attnopt.student.attach import mechanisms_of
from attnopt.student.files import load_student
from attnopt.student.library import mixed_student, read_library
from attnopt.student.params import StateParams
from attnopt.student.swap import Swap
from attnopt.targets.dataset import load_dataset
from attnopt.tools.found_mixes import write_found_mixes

VARIANTS = {"softmax": "softmax", "none": "none", "near": "window", "nearer": "window", "free": "performer"}
SEARCH = {"budgets": [0.2, 0.7], "length": 32, "blocks": 2, "pairs": 2, "items": 2, "draws": 6, "held_out": 3}


@pytest.fixture
def shelved(workspace: Workspace) -> Workspace:
    """A library of four variants besides softmax."""
    workspace.set(
        variants=VARIANTS,
        controls=["softmax", "none"],
        transfer={"steps": 2},
        distill={"steps": 0},
        near={"window": 2, "sinks": 1},
        nearer={"window": 12, "sinks": 2},
        free={"features": 4},
        search=SEARCH,
    )
    workspace.run("tokenize", "cache-logits", *(f"distill {name}" for name in VARIANTS))
    return workspace


@torch.no_grad()
def test_a_mixable_model_is_the_mixed_student_of_the_same_layers(shelved: Workspace) -> None:
    dataset, _ = load_dataset(params.load_settings().teacher)
    teacher, ids = dataset.teacher, torch.arange(1, 20)[None]
    library = {name: read_library(Path(f"library/{name}/0"), teacher) for name in ("near", "free")}
    mixable = Mixable(teacher, library)
    assert mixable.names == ["softmax", "near", "free"]
    for mix in ([0, 0], [1, 2], [2, 1], [0, 2], [0, 0]):
        blocks = {layer: library[mixable.names[c]] for layer, c in enumerate(mix) if c}
        built = mixed_student(teacher, blocks, StateParams())
        mixed = mixable.mixed(mix)
        assert [m.kind for m in mechanisms_of(mixed)] == [m.kind for m in mechanisms_of(built)]
        assert torch.equal(mixed(ids).logits, built(ids).logits)
    torch.testing.assert_close(mixable.mixed([0, 0])(ids).logits, teacher(ids).logits)
    held = mixable.state_bytes(ids)
    for layer in range(2):
        for candidate in range(3):
            assert held[layer, candidate] == mixable.mechanism(layer, candidate).state_bytes(1, 19, torch.float32)
    assert mixable.parameters()[0].tolist() == [0, 0, sum(p.numel() for p in library["free"].layers[0].mechanism.parameters())]  # type: ignore[union-attr] # fmt: skip
    assert Swap("softmax").kind == mixable.mechanism(0, 0).kind


def test_the_record_holds_scores_mixes_and_rivals(shelved: Workspace) -> None:
    shelved.run("search")
    record = SearchRecord.read("results/search/record.json")
    assert record.variants[0] == "softmax"
    assert set(record.variants) == set(VARIANTS)
    scores = {(row.layer, row.variant): row for row in record.scores}
    assert len(scores) == 2 * 5
    assert all(scores[layer, "softmax"].kl == scores[layer, "softmax"].restored_kl == 0 for layer in (0, 1))
    assert all(scores[layer, "nearer"].kl < scores[layer, "none"].kl for layer in (0, 1))
    assert record.softmax_bytes == 2 * scores[0, "softmax"].bytes
    for row in record.mixes:
        assert row.bytes == sum(scores[i, name].bytes for i, name in enumerate(row.layers))
        assert row.bytes <= row.budget * record.softmax_bytes
        assert row.replaced == pytest.approx(
            sum(scores[i, n].kl + scores[i, n].recall for i, n in enumerate(row.layers))
        )
        assert row.total == pytest.approx(row.kl + row.recall)
    ways = {"one", "uniform", "ends", "greedy", "fewest_parameters", "searched"}
    for budget in SEARCH["budgets"]:  # type: ignore[attr-defined]
        mine = [row for row in record.mixes if row.budget == budget]
        best = next(row for row in mine if row.way == "searched")
        assert {row.way for row in mine} - {"rescored", "random"} == ways
        assert sum(row.way == "random" for row in mine) == 6
        assert all(row.total >= best.total for row in mine if row.way == "rescored")
        assert all(row.replaced >= min(r.replaced for r in mine if r.way in ("searched", "rescored")) for row in mine)
        held = {row.way: row for row in record.held_out if row.budget == budget}
        assert held.keys() == ways
        assert held["searched"].more_kl is None
        assert held["one"].more_kl == pytest.approx(held["one"].kl - held["searched"].kl)
    single = next(row for row in record.mixes if row.layers.count("softmax") == 1 and len(set(row.layers)) == 2)
    layer = next(i for i, name in enumerate(single.layers) if name != "softmax")
    assert single.kl == pytest.approx(scores[layer, single.layers[layer]].kl)


def test_time_is_a_cost_like_state(shelved: Workspace) -> None:
    shelved.set(search={"decode": [0.999, 5.0], "restored": False, "draws": 0})
    shelved.run("search")
    record = SearchRecord.read("results/search/record.json")
    assert all(row.restored_kl is None and row.decode_ns and row.prefill_ns is None for row in record.scores)
    times = {row.variant: row.decode_ns or 0 for row in record.scores}
    for row in record.held_out:
        if row.cost == "state":
            assert row.measured is None
        else:
            spent = sum(times[name] for name in row.layers) / (2 * times["softmax"])
            assert row.predicted == pytest.approx(spent)
            assert spent <= row.budget
            assert row.measured is not None
            assert row.measured > 0
    best = {row.budget: row for row in record.held_out if row.way == "searched" and row.cost == "decode"}
    assert best[5.0].layers == ["softmax", "softmax"]
    assert best[5.0].measured == pytest.approx(1, abs=0.5)


def test_a_record_that_holds_stays_until_a_student_of_it_changed(shelved: Workspace) -> None:
    record = Path("results/search/record.json")
    shelved.run("search")
    stamp = record.stat().st_mtime_ns
    shelved.run("search")
    assert record.stat().st_mtime_ns == stamp
    shelved.set(near={"window": 3, "sinks": 1})
    shelved.run("distill near", "search")
    assert record.stat().st_mtime_ns != stamp


def test_what_was_searched_can_be_trained_as_a_mix(shelved: Workspace) -> None:
    shelved.run("search")
    record = SearchRecord.read("results/search/record.json")
    best = next(row for row in record.mixes if row.way == "searched" and row.budget == 0.7)
    layers = {i: name for i, name in enumerate(best.layers) if name != "softmax"}
    shelved.set(mixes={"best": {"layers": layers, "state": {"share": 0.7, "length": 32}, "distill": {"steps": 2}}})
    shelved.run("mix best")
    kinds = ["softmax" if name == "softmax" else VARIANTS[name] for name in best.layers]
    assert [m.kind for m in mechanisms_of(load_student("models/best/0"))] == kinds


def test_what_was_found_and_its_rivals_are_written_as_mixes(
    shelved: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    shelved.run("search")
    write_found_mixes(0.7)
    record, mixes = SearchRecord.read("results/search/record.json"), params.load_settings().mixes
    layers = {tuple(sorted(mix["layers"].items())) for mix in mixes.values()}
    assert len(layers) == len(mixes)
    for row in record.mixes:
        named = tuple((i, name) for i, name in enumerate(row.layers) if name != "softmax")
        if row.budget == 0.7 and row.way not in ("rescored", "random") and named:
            assert named in layers
    assert "searched_700" in mixes
    assert "`dvc repro` trains them" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^--write 0\.3: the search had no such budget of state, only \[0\.2, 0\.7\]"):
        write_found_mixes(0.3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"variants": ["nearr"]},
            r"^params\.yaml: search\.variants: unknown variant 'nearr' \(did you mean 'nearer'\?\)",
        ),
        ({"variants": ["softmax"]}, r"^search: library has no variant to choose from besides softmax"),
        ({"variants": ["near"], "budgets": [0.01]}, r"^search\.budgets: 0\.01 of softmax's state is less than any mix"),
        (
            {"variants": ["near"], "decode": [1e-6]},
            r"^search\.decode: 1e-06 of softmax's decoding step is less than any",
        ),
        ({"score": "both", "restored": False}, r"^params\.yaml: search: score both needs restored: true"),
        ({"length": 65}, r"^search\.length: 65 exceeds the teacher's 64 positions"),
        ({"pairs": 400}, r"^search\.pairs: 400 are not possible: \d+ words for 400 pairs"),
        ({"budgets": [0]}, r"'search\.budgets\.0' is 0: input should be greater than 0"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_record(shelved: Workspace, changes: dict, message: str) -> None:
    shelved.set(search=changes)
    with pytest.raises(UserError, match=message) as caught:
        shelved.run("search")
    assert "\n" not in str(caught.value)
    assert not Path("results/search/record.json").exists()
