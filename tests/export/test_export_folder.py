"""An exported folder gives the same model: same logits, same text through the same state, with any mechanism."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, committed_kinds
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.quantizers.quantizer_gguf import GgufHfQuantizer

import attnopt
from attnopt.core.errors import UserError
from attnopt.export.description import Description, LayerRow, swaps_of
from attnopt.student.attach import attach, detach, mechanisms_of
from attnopt.student.state import StateCache
from attnopt.student.swap import Swap

GREEDY = {"do_sample": False, "max_new_tokens": 6}


def read(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_transformers_reads_the_same_model(student, ids, tmp_path, family: str) -> None:
    model = student(family)
    model.save_pretrained(tmp_path / "out")
    loaded = read(tmp_path / "out")
    assert type(loaded) is type(model)
    assert not loaded.training
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
    theirs = loaded.generate(ids, **GREEDY, return_dict_in_generate=True)
    assert isinstance(theirs.past_key_values, StateCache)
    assert torch.equal(theirs.sequences, model.generate(ids, **GREEDY))
    assert theirs.past_key_values.state_bytes() < 2 * ids.numel() * 32 * 4 * 3


@pytest.mark.parametrize("kind", committed_kinds())
def test_every_mechanism_comes_back(student, ids, tmp_path, kind: str) -> None:
    model = student("llama", Swap(kind))
    with torch.no_grad():
        for mechanism in mechanisms_of(model):
            for parameter in mechanism.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "out")
    loaded = read(tmp_path / "out")
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
    assert [m.options for m in mechanisms_of(loaded)] == [m.options for m in mechanisms_of(model)]


def test_some_layers_keep_softmax(student, ids, tmp_path) -> None:
    model = student("llama", Swap("window", {"window": 5, "sinks": 1}, layers=[1]))
    model.save_pretrained(tmp_path / "out")
    loaded = read(tmp_path / "out")
    assert [m.kind for m in mechanisms_of(loaded)] == ["softmax", "window", "softmax"]
    assert torch.equal(loaded(ids).logits, model(ids).logits)


MIXED = [
    Swap("window", {"window": 5, "sinks": 1}, layers=[0]),
    Swap("performer", {"features": 8}, layers=[1]),
]


@pytest.mark.skipif("Sequence" not in str(inspect.signature(attach)), reason="attach takes a single swap here")
def test_a_mixed_student_comes_back(student, ids, tmp_path) -> None:
    model = student("llama", MIXED)
    model.save_pretrained(tmp_path / "out")
    loaded = read(tmp_path / "out")
    assert [m.kind for m in mechanisms_of(loaded)] == ["window", "performer", "softmax"]
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_equal_layers_are_one_swap() -> None:
    window = LayerRow(kind="window", options={"window": 5})
    wide, softmax = LayerRow(kind="window", options={"window": 9}), LayerRow(kind="softmax", options={})
    swaps = swaps_of(Description(attnopt="1", layers=[window, softmax, wide, window, softmax]))
    assert swaps == [Swap("window", {"window": 5}, [0, 3]), Swap("window", {"window": 9}, [2])]
    assert swaps_of(Description(attnopt="1", layers=[softmax, softmax])) == [Swap("softmax", {}, [0, 1])]


def test_it_is_saved_again_the_same_also_in_shards(student, tmp_path) -> None:
    model = student("llama")
    model.save_pretrained(tmp_path / "one")
    loaded = attnopt.load(tmp_path / "one")
    assert loaded.tokenizer("Anna the king").input_ids == model.tokenizer("Anna the king").input_ids
    loaded.save_pretrained(tmp_path / "two", max_shard_size="20KB")
    assert len(list((tmp_path / "two").glob("model-*.safetensors"))) > 2
    attnopt.load(tmp_path / "two").save_pretrained(tmp_path / "two")
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(p.name for p in (tmp_path / "one").iterdir())
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file


def test_the_config_says_what_it_is(student, tmp_path) -> None:
    student("llama", Swap("window", {"window": 5, "sinks": 1})).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_attnopt.AttnoptForCausalLM"
    assert config["student"]["layers"][2] == {"kind": "window", "options": {"window": 5, "sinks": 1}}
    assert config["text_config"]["use_cache"] is True  # as before the swap
    loaded = AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    assert (loaded.vocab_size, loaded.hidden_size, loaded.get_text_config().model_type) == (300, 32, "llama")
    untrained = AutoModelForCausalLM.from_config(loaded, trust_remote_code=True)
    assert [m.kind for m in mechanisms_of(untrained)] == ["window"] * 3
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)


def test_dtype_and_device_map_are_transformers_own(student, ids, tmp_path) -> None:
    student("llama").save_pretrained(tmp_path)
    half = read(tmp_path, dtype=torch.bfloat16, device_map="cpu")
    assert {t.dtype for t in half.parameters()} == {torch.bfloat16}
    assert half(ids).logits.dtype == torch.bfloat16


def test_a_teacher_read_from_a_gguf_file_is_saved_with_its_plain_weights(student, ids, tmp_path) -> None:
    """transformers marks it as quantised, though its weights are numbers like any other's."""
    model = student("llama")
    quantised = SimpleNamespace(quant_method="gguf", to_dict=lambda: {"quant_method": "gguf"})
    model.config.quantization_config = quantised
    model.hf_quantizer = quantizer = GgufHfQuantizer(quantised)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())["text_config"]
    assert torch.equal(read(tmp_path)(ids).logits, model(ids).logits)
    assert model.hf_quantizer is quantizer


def test_other_files_of_a_folder_stay_and_a_detached_model_is_saved_plainly(student, ids, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    model = student("gpt2")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    detach(model).save_pretrained(tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(plain(ids).logits, model(ids).logits)


def test_what_cannot_be_exported_is_refused_before_anything_is_written(student, tmp_path) -> None:
    model = student("gpt2")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file: the name of a folder is needed"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(UserError, match="push_to_hub=True is not possible here"):
        model.save_pretrained(tmp_path / "out", push_to_hub=True)

    class Mine(type(model.config)):  # type: ignore[misc]
        pass

    model.config.__class__ = Mine
    with pytest.raises(UserError, match="its code is not a part of transformers"):
        model.save_pretrained(tmp_path / "out")
    with pytest.raises(UserError, match="is not swapped"):
        attnopt.save(detach(model), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def run(code: str, *arguments: object, **env: str) -> subprocess.CompletedProcess:
    """Python in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""} | env
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)


FRESH = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
folder, ids, logits, text = sys.argv[1], *torch.load(sys.argv[2])
assert "attnopt" not in sys.modules
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
torch.testing.assert_close(model(ids).logits, logits, rtol=0, atol=1e-5)
out = model.generate(ids, do_sample=False, max_new_tokens=6, return_dict_in_generate=True)
assert torch.equal(out.sequences, text)
assert type(out.past_key_values).__name__ == "StateCache"
write = pipeline("text-generation", model=folder, trust_remote_code=True)
assert write("Anna the king", max_new_tokens=3)[0]["generated_text"].startswith("Anna the king")
said = write([{"role": "user", "content": "Anna the king"}], max_new_tokens=3)[0]["generated_text"]
assert said[-1]["role"] == "assistant", said
"""


@pytest.mark.slow
def test_a_process_that_never_imported_attnopt_reads_it(tmp_path) -> None:
    """The bundled teacher, and transformers' pipeline with its chat template."""
    bundled = ROOT / "attnopt/assets/mini-gpt2"
    model = attach(AutoModelForCausalLM.from_pretrained(bundled, dtype=torch.float32), Swap("performer"))
    model.tokenizer = AutoTokenizer.from_pretrained(bundled)
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    ids = torch.randint(1, 4000, (2, 40))
    torch.save((ids, model(ids).logits, model.generate(ids, **GREEDY)), tmp_path / "expected.pt")
    model.save_pretrained(tmp_path / "out")
    ended = run(FRESH, tmp_path / "out", tmp_path / "expected.pt", HF_MODULES_CACHE=str(tmp_path / "modules"))
    assert ended.returncode == 0, ended.stderr


MISSING = """
import importlib.abc, sys
class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "attnopt":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
sys.meta_path.insert(0, Nothing())
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
"""


@pytest.mark.slow
def test_without_the_package_one_line_says_what_to_install(student, tmp_path) -> None:
    student("gpt2").save_pretrained(tmp_path / "out")
    ended = run(MISSING, tmp_path / "out", HF_MODULES_CACHE=str(tmp_path / "modules"))
    assert ended.returncode == 1
    last = ended.stderr.strip().split("\n")[-1]
    assert last.startswith("ImportError: this model's attention is the Python package attnopt's, which is missing here")
    assert "install attnopt 0." in last
