"""Students, exported folders, teachers and caches that were made by others: nothing in them runs, and nothing that they
name outside of their folder is read."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Workspace
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import attnopt
from attnopt.core.checkpoint import Checkpoint
from attnopt.core.errors import UserError
from attnopt.core.files import read_json
from attnopt.corpus.blocks import read_blocks
from attnopt.records.distill import StudentCard
from attnopt.student.attach import attach, mechanisms_of
from attnopt.student.files import save_student
from attnopt.student.swap import Swap
from attnopt.teacher.model import load_teacher, teacher_fingerprint
from attnopt.teacher.params import TeacherParams


class Hack:
    """A pickle that makes a file when it is loaded."""

    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


@pytest.fixture(autouse=True)
def nothing_ran(workspace: Workspace) -> Any:
    yield
    assert not Path("hacked").exists()


def test_the_pickle_of_these_tests_does_run(workspace: Workspace) -> None:
    pickle.loads(pickle.dumps(Hack()))
    assert Path("hacked").is_file()
    Path("hacked").unlink()


# a student


@pytest.fixture
def student(workspace: Workspace) -> Path:
    """A student of kind performer in models/performer/0."""
    where = TeacherParams(source="path", path="teacher")
    teacher, _ = load_teacher(where)
    made = attach(load_teacher(where)[0], Swap("performer", {"features": 8}))
    card = StudentCard(
        variant="performer", kind="performer", control=None, options=mechanisms_of(made)[0].options.model_dump(),
        layers=None, start="teacher", seed=0, teacher=where.model_dump(), fingerprint=teacher_fingerprint(teacher), key="",
    )  # fmt: skip
    save_student(Path("models/performer/0"), made, teacher, card)
    return Path("models/performer/0")


def options(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda card: card["options"].update(changes)


CARDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "code by name": (lambda c: c.update(kind="os:system"), "unknown mechanism 'os:system'"),
    "a module's path": (lambda c: c.update(kind="..tools.doctor"), "unknown mechanism"),
    "a folder outside": (lambda c: c.update(variant="../../x"), "'variant' is '../../x': value error, a name is up to"),
    "markup as a name": (lambda c: c.update(variant="<script>"), "'variant' is '<script>'"),
    "more than the memory": (
        options(features=10**12),
        "'features' is 1000000000000: .*the largest number of anything is 16777216",
    ),
    "more than numbers can say": (options(features=10**30), "performer does not fit|'features' is 1"),
    "no number": (options(features=float("nan")), "'features' is nan"),
    "endless": (options(epsilon=float("inf")), "unknown key 'epsilon'|'epsilon' is inf"),
    "layers beyond": (lambda c: c.update(layers=[10**30]), "do not exist"),
    "a negative layer": (lambda c: c.update(layers=[-1]), "do not exist"),
    "no such folder": (lambda c: c["teacher"].update(path="/proc/self"), "/proc/self is no model folder"),
    "a hub": (lambda c: c["teacher"].update(source="hub", id="../../x"), "cannot be loaded"),
}


@pytest.mark.parametrize("case", CARDS)
def test_a_hostile_student_json_is_one_line(student: Path, case: str) -> None:
    change, expected = CARDS[case]
    card = json.loads((student / "student.json").read_text())
    change(card)
    (student / "student.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=expected) as caught:
        attnopt.load(student)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 50_000, "nested too deeply"),
        ("9" * 5000, "limit"),
        ("\0", "Expecting value"),
    ],
)
def test_json_that_exhausts_its_reader_is_one_line(student: Path, text: str, expected: str) -> None:
    (student / "student.json").write_text(text)
    with pytest.raises(UserError, match=rf"student\.json is damaged.*{expected}"):
        attnopt.load(student)
    (student / "student.json").write_bytes(b'{"a": "\xff\xfe"}')
    with pytest.raises(UserError, match=r"student\.json is damaged"):
        read_json(student / "student.json")


def header(length: int, content: object = None) -> bytes:
    return struct.pack("<Q", length) + json.dumps(content or {}).encode()


ONE = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
HEADERS = {
    "a length beyond the file": header(2**63),
    "a header of a gigabyte": header(2**30),
    "offsets beyond the file": header(70, {"a": {**ONE, "data_offsets": [0, 2**40]}}),
    "offsets that run backwards": header(70, {"a": {**ONE, "data_offsets": [16, 0]}}),
    "a shape that overflows": header(90, {"a": {**ONE, "shape": [2**40, 2**40]}}),
    "a negative shape": header(70, {"a": {**ONE, "shape": [-1]}}),
    "a pickle": pickle.dumps(Hack()),
    "nothing": b"",
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_lying_safetensors_header_is_one_line(student: Path, case: str) -> None:
    content = HEADERS[case]
    if content[8:9] == b"{" and len(content) < 200 and struct.unpack("<Q", content[:8])[0] < 200:
        content = struct.pack("<Q", len(content) - 8) + content[8:] + bytes(16)
    (student / "weights.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.safetensors is damaged") as caught:
        attnopt.load(student)
    assert "\n" not in str(caught.value)


# an exported folder


@pytest.fixture
def exported(workspace: Workspace) -> Path:
    model = attach(AutoModelForCausalLM.from_pretrained("teacher", dtype=torch.float32), Swap("window", {"window": 8}))
    model.tokenizer = AutoTokenizer.from_pretrained("teacher")
    model.save_pretrained("out", max_shard_size="20KB")
    return Path("out")


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/secret.safetensors", "model.bin", "..", 7, None])
def test_shards_lie_in_their_folder(exported: Path, file: object) -> None:
    index = exported / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name = next(iter(content["weight_map"]))
    save_file(load_file(exported / content["weight_map"][name]), "secret.safetensors")
    content["weight_map"][name] = file
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"index\.json: 'weight_map\..*, which is no file of this folder"):
        attnopt.load(exported)


def test_code_and_pickles_of_a_folder_do_not_run(exported: Path) -> None:
    (exported / "modeling_attnopt.py").write_text("import os; os.system('touch hacked')")
    attnopt.load(exported)
    for weights in exported.glob("model*safetensors*"):
        weights.unlink()
    (exported / "pytorch_model.bin").write_bytes(pickle.dumps(Hack()))
    with pytest.raises(UserError, match=r"no file named model\.safetensors"):
        attnopt.load(exported)


def test_an_adapter_cannot_name_another_model(exported: Path) -> None:
    (exported / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../elsewhere"}))
    with pytest.raises(UserError, match="an adapter lies beside the model's own files"):
        attnopt.load(exported)


def test_a_linked_readme_is_not_carried_into_a_new_export(exported: Path) -> None:
    Path("secret").write_text("of this machine alone")
    (exported / "README.md").unlink()
    (exported / "README.md").symlink_to(Path("secret").absolute())
    attnopt.load(exported).save_pretrained("again")
    assert "of this machine" not in Path("again/README.md").read_text()
    attnopt.load(exported).save_pretrained("out")
    assert Path("secret").read_text() == "of this machine alone", "nor written through"


# a teacher


def test_a_teacher_s_code_does_not_run_and_nobody_is_asked(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads(Path("teacher/config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    Path("teacher/config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    Path("teacher/own.py").write_text("import os; os.system('touch hacked')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match="teacher cannot be loaded"):
        load_teacher(TeacherParams(source="path", path="teacher"))


def test_a_teacher_that_is_a_pickle_is_refused(workspace: Workspace) -> None:
    Path("teacher/model.safetensors").unlink()
    Path("teacher/pytorch_model.bin").write_bytes(pickle.dumps(Hack()))
    with pytest.raises(UserError, match=r"teacher cannot be loaded: .*no file named model\.safetensors"):
        load_teacher(TeacherParams(source="path", path="teacher"))


# arrays and checkpoints


def test_arrays_of_objects_are_not_unpickled(workspace: Workspace) -> None:
    workspace.run("tokenize")
    np.save("data/corpus/train.npy", np.array([Hack()], dtype=object))
    with pytest.raises(UserError, match=r"train\.npy is damaged"):
        read_blocks(Path("data/corpus"), "train")


def test_a_store_of_objects_is_not_unpickled(workspace: Workspace) -> None:
    from attnopt.records.teacher import StoredSplit
    from attnopt.targets.store import Stored, write_store

    np.save("objects.npy", np.array([Hack()], dtype=object))
    part = write_store(Path("store"), 1, 1, lambda _: [{"a": np.arange(3)}])[0]
    Path("store/00000/a.npy").write_bytes(Path("objects.npy").read_bytes())
    from attnopt.core.files import sha256

    files = sorted(Path("store/00000").glob("*.npy"))
    part = part.model_copy(update={"bytes": sum(f.stat().st_size for f in files), "sha256": sha256(*files)})
    entry = StoredSplit(form="layers", bytes_per_token=0, blocks=1, bytes=part.bytes, parts=[part])
    with pytest.raises(UserError, match="store/00000 is damaged"):
        Stored(Path("store"), entry).block(0)


@pytest.mark.parametrize("write", [pickle.dump, lambda hack, file: torch.save(hack, file)])
def test_a_checkpoint_that_is_a_pickle_is_refused(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, write: Callable
) -> None:
    monkeypatch.setenv("ATTNOPT_CHECKPOINTS", str(workspace.path / "checkpoints"))
    checkpoint = Checkpoint("key")
    checkpoint.folder.mkdir(parents=True)
    with checkpoint.file.open("wb") as file:
        write({"step": Hack()}, file)
    with pytest.raises(UserError, match=r"state\.pt is no checkpoint of attnopt, or damaged"):
        checkpoint.load()


def test_a_corpus_of_control_characters_and_markup_is_text_and_no_more(workspace: Workspace) -> None:
    nasty = "a\0b \x1b]0;x\x07 <script>alert(1)</script> \u202e\u2028 {{ 7 * 7 }} $(touch hacked)\n" * 200
    for split in ("train", "valid", "test"):
        Path(f"text/{split}.txt").write_text(nasty, encoding="utf-8")
    workspace.run("tokenize")
    _, tokenizer = load_teacher(TeacherParams(source="path", path="teacher"), model=False)
    blocks = read_blocks(Path("data/corpus"), "train")
    assert nasty[:60] in tokenizer.decode(blocks[:8].ravel())
    Path("text/train.txt").write_bytes(b"abc \xff\xfe")
    with pytest.raises(UserError, match=r"train\.txt is not UTF-8: byte 4 is 0xff"):
        workspace.run("tokenize")
