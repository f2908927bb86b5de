"""attnopt convert on a toy: from a folder with a model to one with the page and a student that transformers reads."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from attnopt.convert import run
from attnopt.convert.request import Request
from attnopt.core.errors import UserError
from attnopt.records.search import SearchRecord

SAME = ("params.yaml", "conversion.json", "data/corpus/*", "models/*/0/*", "library/*/0/*", "student/*")


@pytest.fixture
def request_(tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Request:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ATTNOPT_CHECKPOINTS", raising=False)
    monkeypatch.setattr(run, "study", cheap)
    return Request(str(tiny / "teacher"), 32, 0.5, str(tiny / "text"), 2)


def cheap(*given: object) -> dict:
    """The study with a bench that is over in a second."""
    from attnopt.convert.study import study

    made = study(*given)  # type: ignore[arg-type]
    bench = {"phases": ["prefill"], "min_iterations": 2, "min_seconds": 0.01}
    return made | {"bench": made["bench"] | bench, "evaluate": made["evaluate"] | {"items": 2}}


def files(folder: Path) -> dict[str, bytes]:
    """What is the same whenever and however often it is made; records say how long they took."""
    found = [path for pattern in SAME for path in folder.glob(pattern) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found if path.name != "README.md"}


@pytest.mark.slow
def test_a_model_is_converted_and_a_killed_conversion_goes_on_to_the_same_files(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run.convert(request_, whole)
    said = capsys.readouterr().out
    assert "found:  layers 0" in said
    assert str(whole / "reports/index.html") in said
    assert (whole / "reports/index.html").is_file()
    assert "0.5 of softmax’s state" in (whole / "reports/report.md").read_text()
    searched = SearchRecord.read(whole / "results/search/record.json")
    found = next(mix for mix in searched.mixes if mix.way == "searched")
    assert found.bytes <= 0.5 * searched.softmax_bytes

    ids = torch.arange(20)[None]
    student = AutoModelForCausalLM.from_pretrained(whole / "student", trust_remote_code=True)
    import attnopt

    torch.testing.assert_close(student(ids).logits, attnopt.load(whole / "student")(ids).logits)

    calls: list[str] = []
    stage = run.Conversion._stage

    def dying(self: run.Conversion, name: str, *given: object, **more: object) -> None:
        calls.append(name)
        if len(calls) in (2, 8):
            raise KeyboardInterrupt
        stage(self, name, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(run.Conversion, "_stage", dying)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run.convert(request_, killed)
    run.convert(request_, killed)
    assert files(killed) == files(whole)

    made = {path: path.stat().st_mtime_ns for path in (killed / "results").rglob("record.json")}
    run.convert(request_, killed)
    assert made == {path: path.stat().st_mtime_ns for path in made}

    with pytest.raises(UserError, match="another conversion, of length 32 and not 16"):
        run.convert(Request(request_.model, 16, 0.5, request_.text, 2), killed)


def refused(model: Path | str, *given: object, out: str = "out") -> str:
    with pytest.raises(UserError) as error:
        run.convert(Request(str(model), *given), Path(out))  # type: ignore[arg-type]
    assert not Path(out, "params.yaml").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_done_is_refused_before_any_work(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher, text = tiny / "teacher", str(tiny / "text")
    assert "64 positions" in refused(teacher, 128, 0.5, text)
    assert "smallest mix" in refused(teacher, 32, 0.05, text)
    assert "above 0 and below 1" in refused(teacher, 32, 1.0, text)
    assert "8 tokens are the least" in refused(teacher, 4, 0.5, text)
    assert "is no folder" in refused(teacher, 32, 0.5, "nowhere")
    Path("empty").mkdir()
    assert "holds no text" in refused(teacher, 32, 0.5, "empty")
    Path("empty/a.txt").write_text("Anna found the house .")
    assert "no document to measure on (valid) has 32 tokens" in refused(teacher, 32, 0.5, "empty")
    Path("full").mkdir()
    Path("full/mine").write_text("")
    assert "holds something else" in refused(teacher, 32, 0.5, text, out="full")
    assert "is a file" in refused(teacher, 32, 0.5, text, out="full/mine")
    assert "no model's folder" in refused(tmp_path, 32, 0.5, text)
    assert "does not exist" in refused("missing.gguf", 32, 0.5, text)
    assert "is no model" in refused("./missing", 32, 0.5, text)


def test_an_architecture_that_cannot_be_swapped_is_refused(tiny: Path, tmp_path: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    shutil.copytree(tiny / "teacher", tmp_path / "bloom")
    (tmp_path / "bloom" / "model.safetensors").unlink()
    BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "bloom"
    )
    assert "cannot be swapped" in refused(tmp_path / "bloom", 32, 0.5, str(tiny / "text"), out=str(tmp_path / "out"))
