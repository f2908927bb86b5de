"""The model card: the study's numbers for the weights that they belong to, and none for others."""

import json
from pathlib import Path

import pytest
import torch
from conftest import Workspace

import attnopt
from attnopt.core.errors import UserError
from attnopt.export.card import Facts, Numbers, model_card
from attnopt.export.description import Description, LayerRow
from attnopt.records.bench import BenchRecord, Measurement
from attnopt.records.distill import DistillRecord
from attnopt.records.evaluate import EvaluateRecord
from attnopt.student.swap import Swap


@pytest.fixture
def studied(workspace: Workspace) -> Path:
    """A student of a study that has measured it."""
    workspace.set(variants={"near": "window"}, near={"window": 6, "sinks": 1}, evaluate={"lengths": [48]})
    workspace.run("tokenize", "cache-logits", "distill near", "evaluate near")
    return workspace.path / "models/near/0"


def card_of(student: Path, out: Path) -> str:
    attnopt.load(student).save_pretrained(out)
    return (out / "README.md").read_text()


@pytest.mark.slow
def test_it_has_the_records_numbers(studied: Path, tmp_path: Path) -> None:
    text = card_of(studied, tmp_path / "out")
    record = EvaluateRecord.read("results/evaluate/near/0/record.json")
    test = record.splits["test"]
    assert f"| test split, blocks as trained | {test.kl_forward:.3g} ± {test.kl_forward_se:.2g} |" in text
    assert f"| {test.top1_agreement:.3f} | {test.ppl_ratio:.3f}× |" in text
    assert "distill (12 steps, 1,488 tokens)" in text
    assert text.startswith("---\nlibrary_name: transformers\n")
    assert "# near\n" in text
    assert "| 0 to 1 | `window` | window=6, sinks=1 |" in text
    assert "of teacher in whose attention layers" in text
    assert str(tmp_path) not in text  # where the study lies is nobody's business
    for low in ("None", "nan", "inf"):
        assert low not in text


@pytest.mark.slow
def test_an_unchanged_student_keeps_its_card_and_a_trained_one_loses_the_numbers(studied: Path, tmp_path: Path) -> None:
    text = card_of(studied, tmp_path / "out")
    assert card_of(tmp_path / "out", tmp_path / "again") == text
    model = attnopt.load(tmp_path / "out")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "trained")
    trained = (tmp_path / "trained" / "README.md").read_text()
    assert "Nothing: it was trained on from out, whose numbers do not hold." in trained
    assert "KL" not in trained
    weights = {name: tensor.clone() for name, tensor in attnopt.load(tmp_path / "out").state_dict().items()}
    weights["transformer.ln_f.bias"] += 1
    attnopt.load(tmp_path / "out").save_pretrained(tmp_path / "given", state_dict=weights)
    assert "it was trained on from out" in (tmp_path / "given" / "README.md").read_text()


@pytest.mark.slow
def test_records_of_another_training_and_damaged_ones_are_not_stated(studied: Path, tmp_path: Path) -> None:
    distill = Path("results/distill/near/0/record.json")
    content = json.loads(distill.read_text())
    distill.write_text(json.dumps(content | {"key": "other"}))
    assert "Nothing here: the study's records are of another training" in card_of(studied, tmp_path / "other")
    distill.write_text(json.dumps({k: v for k, v in content.items() if k != "kl_end"}))
    with pytest.raises(UserError, match=r"results/distill/near/0/record\.json: 'kl_end' is missing"):
        card_of(studied, tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()
    distill.write_text(json.dumps(content))
    assert "Nothing here: the study keeps records of finished students" in card_of(
        Path("library/near/0"), tmp_path / "l"
    )
    distill.unlink()
    assert "Nothing here: the study has no record of it." in card_of(studied, tmp_path / "none")


def test_one_that_nobody_measured_says_so(student, tmp_path: Path) -> None:
    student("llama", Swap("window", {"window": 5, "sinks": 1}, layers=[0, 1])).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "## Measured\n\nNothing here.\n" in text
    assert "| 0 to 1 | `window` | window=5, sinks=1 |\n| 2 | `softmax` | none |" in text
    token = 2 * 2 * 8 * 4
    softmax, window = token * 96, token * 5
    share = (softmax + 2 * window) / (3 * softmax)
    assert f"| 96 | {softmax + 2 * window:,} | {3 * softmax:,} | {share:.3f}× |" in text


def test_costs_are_those_of_the_whole_model_beside_softmax_of_the_same_length() -> None:
    def row(subject: str, phase: str, length: int, median: float | None, level: str = "model") -> Measurement:
        unit = "ms/token" if phase == "decode" else "ms"
        return Measurement(level=level, phase=phase, length=length, batch=1, subject=subject, unit=unit, median=median)  # type: ignore[arg-type]

    rows = [
        row("variant", "decode", 64, 2.0), row("softmax", "decode", 64, 1.6), row("variant", "decode", 128, 9.0),
        row("softmax", "decode", 128, None), row("variant", "prefill", 64, 4.0), row("softmax", "prefill", 64, 8.0),
        row("variant", "decode", 64, 7.0, "operation"), row("softmax", "decode", 256, 7.0),
    ]  # fmt: skip
    bench = BenchRecord.model_construct(measurements=rows, hardware="a machine")
    numbers = Numbers(distill=DistillRecord.model_construct(phases=[], seed=3), bench=bench)
    description = Description(attnopt="1", layers=[LayerRow(kind="none", options={})])
    text = model_card(description, numbers, Facts("GPT2LMHeadModel", 10, "float32", "gpt2", "openai-community/gpt2"))
    assert "batch 1, on a machine" in text
    assert text.endswith("| prefill | 64 | 4 ms | 0.50× |\n| decode | 64 | 2 ms/token | 1.25× |\n")
    assert "base_model: openai-community/gpt2\n" in text
    assert "Nothing was trained; seed 3" in text
    assert "Its quality was not measured." in text
