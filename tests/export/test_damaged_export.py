"""Exported folders that were edited or damaged are refused in one line that names the file, however they are read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import attnopt
from attnopt.core.errors import UserError
from attnopt.student.swap import Swap


@pytest.fixture
def folder(student, tmp_path) -> Path:
    student("llama", Swap("performer", {"features": 8})).save_pretrained(tmp_path / "out")
    return tmp_path / "out"


def refused(folder: Path, expected: str) -> None:
    """By attnopt.load and by transformers, with the same line."""
    for read in (attnopt.load, lambda path: AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)):
        with pytest.raises(UserError, match=expected) as caught:
            read(folder)
        assert "\n" not in str(caught.value)
        assert folder.name in str(caught.value)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no description": (lambda c: c.pop("student"), r"config\.json: 'student' is None: the description"),
    "another format": (lambda c: c["student"].update(format=7), r"'student\.format' is 7, this version reads 1"),
    "unknown mechanism": (
        lambda c: c["student"]["layers"][1].update(kind="performr"),
        r"config\.json: student: unknown mechanism 'performr'",
    ),
    "a wrong option": (
        lambda c: [row["options"].update(features=-3) for row in c["student"]["layers"]],
        r"config\.json: student: performer: options: 'features' is -3",
    ),
    "an unknown option": (
        lambda c: [row["options"].update(featurs=3) for row in c["student"]["layers"]],
        r"config\.json: student: performer: options: unknown key 'featurs'",
    ),
    "an unknown key": (lambda c: c["student"].update(x=1), r"config\.json: student: unknown key 'x'"),
    "a layer missing": (lambda c: c["student"]["layers"].pop(), r"'student\.layers' has 2 rows, the model 3 layers"),
    "layers as text": (lambda c: c["student"].update(layers="all"), r"student: 'layers' is 'all'"),
    "other options": (
        lambda c: [row["options"].update(features=9) for row in c["student"]["layers"]],
        r"model\.safetensors does not fit config\.json at model\.layers\.0\.self_attn\.mechanism",
    ),
    "another mechanism": (
        lambda c: [row.update(kind="softmax", options={}) for row in c["student"]["layers"]],
        r"model\.safetensors does not fit config\.json at model\.layers\.0\.self_attn\.mechanism",
    ),
    "no text_config": (lambda c: c.pop("text_config"), r"config\.json: 'text_config' is missing"),
    "an unknown architecture": (
        lambda c: c["text_config"].update(model_type="lama"),
        r"config\.json: 'text_config\.model_type' is 'lama', which this version of transformers lacks",
    ),
    "no language model": (
        lambda c: c["text_config"].update(model_type="vit"),
        r"config\.json: 'text_config\.model_type' is 'vit', which is no causal language model's",
    ),
    "other widths": (
        lambda c: c["text_config"].update(intermediate_size=50),
        r"model\.safetensors does not fit config\.json at model\.layers\.0\.mlp",
    ),
    "fewer layers": (
        lambda c: c["text_config"].update(num_hidden_layers=2),
        r"model\.safetensors does not fit config\.json at model\.layers\.2",
    ),
    "more layers": (
        lambda c: c["text_config"].update(num_hidden_layers=4),
        r"model\.safetensors does not fit config\.json at model\.layers\.3",
    ),
    "a width that is no number": (
        lambda c: c["text_config"].update(hidden_size="wide"),
        r"config\.json: text_config: ",
    ),
    "a width without sense": (lambda c: c["text_config"].update(vocab_size=-4), r"config\.json: text_config: "),
    "an architecture that is no name": (
        lambda c: c["text_config"].update(model_type=["llama"]),
        r"config\.json: 'text_config\.model_type' is \['llama'\]",
    ),
    "an unknown activation": (
        lambda c: c["text_config"].update(hidden_act="gelo"),
        r"config\.json: text_config: .*gelo",
    ),
    "heads that do not divide": (lambda c: c["text_config"].update(num_attention_heads=5), r"config\.json"),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_config_is_refused_by_key(folder: Path, what: str) -> None:
    change, expected = EDITS[what]
    edit(folder, change)
    refused(folder, expected)


def test_damaged_weights_are_refused_by_file(folder: Path) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    for name, change in {
        "model.layers.1.self_attn.q_proj.weight": None,
        "model.layers.1.self_attn.mechanism.projection": None,
        "model.norm.weight": torch.zeros(3),
        "model.layers.7.extra": torch.zeros(3),
    }.items():
        edited = {key: tensor for key, tensor in tensors.items() if key != name}
        save_file(edited if change is None else edited | {name: change}, weights, metadata={"format": "pt"})
        if name not in tensors and change is None:
            pytest.fail(f"{name} is no tensor of {sorted(tensors)}")
        refused(folder, rf"model\.safetensors does not fit config\.json at {name}")
    weights.write_bytes(weights.read_bytes()[:500])
    refused(folder, "safetensors are damaged")
    weights.unlink()
    refused(folder, "no file named model.safetensors")


def test_a_damaged_index_of_shards_is_refused(student, tmp_path) -> None:
    student("llama").save_pretrained(tmp_path / "out", max_shard_size="20KB")
    next((tmp_path / "out").glob("model-00002-of-*")).unlink()
    refused(tmp_path / "out", "out: ")
    (tmp_path / "out" / "model.safetensors.index.json").write_text("{")
    refused(tmp_path / "out", r"model\.safetensors\.index\.json is damaged")


def test_a_damaged_or_foreign_config_is_no_student(folder: Path, tmp_path: Path, tiny: Path) -> None:
    shutil.copytree(tiny / "teacher", tmp_path / "plain")
    with pytest.raises(UserError, match=r"plain/config\.json: its model_type is no 'attnopt'"):
        attnopt.load(tmp_path / "plain")
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        attnopt.load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json: its model_type is no 'attnopt'"):
        attnopt.load(folder)
    with pytest.raises(UserError, match="is no student"):
        attnopt.load(tmp_path / "nowhere")


def test_loading_by_attnopt_runs_no_code_of_the_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "modeling_attnopt.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    edit(folder, lambda c: c["text_config"].update(auto_map={"AutoModelForCausalLM": "modeling_attnopt.X"}))
    attnopt.load(folder)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_tokenizer_is_named_and_none_is_made_up(student, folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    with pytest.raises(UserError, match=r"out: its tokenizer cannot be loaded"):
        attnopt.load(folder)
    bare = student("gpt2")
    del bare.tokenizer
    bare.save_pretrained(tmp_path / "bare")
    assert attnopt.load(tmp_path / "bare").tokenizer is None  # transformers would make an empty one for GPT-2


def test_an_adapter_beside_the_model_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"], "r": 2}))
    with pytest.raises((UserError, OSError), match="adapter"):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
