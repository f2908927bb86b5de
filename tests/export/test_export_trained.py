"""An exported student is fine-tuned by transformers' Trainer and by peft, and measured by lm_eval, and saved again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import attnopt
from attnopt.student.attach import mechanisms_of
from attnopt.student.swap import Swap


def read(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)


def far(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() > 0.05)


class Rows(Dataset):
    def __init__(self, ids: torch.Tensor):
        self.ids = ids

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[i % 2], "labels": self.ids[i % 2]}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_transformers_trainer_trains_it_saves_it_and_goes_on(student, ids, tmp_path, family: str) -> None:
    student(family, Swap("performer", {"features": 8})).save_pretrained(tmp_path / "out")
    model = read(tmp_path / "out")
    before, own = model(ids).logits, [p.clone() for p in mechanisms_of(model)[0].parameters()]
    how: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "learning_rate": 1e-2, "report_to": [], "use_cpu": True}
    arguments = TrainingArguments(str(tmp_path / "trained"), **how, gradient_checkpointing=family == "llama", seed=1)
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows(ids))
    trainer.train()
    trained = model.eval()(ids).logits
    assert far(trained, before)
    assert all(not torch.equal(p, q) for p, q in zip(mechanisms_of(model)[0].parameters(), own, strict=True))
    last = tmp_path / "trained" / "checkpoint-4"
    torch.testing.assert_close(read(last)(ids).logits, trained, rtol=0, atol=1e-5)
    assert "it was trained on from out" in (last / "README.md").read_text()
    again = Trainer(model=read(tmp_path / "out"), args=arguments, train_dataset=Rows(ids))
    again.train(resume_from_checkpoint=str(tmp_path / "trained" / "checkpoint-2"))
    torch.testing.assert_close(again.model.eval()(ids).logits, trained, rtol=0, atol=1e-4)
    trainer.save_model(str(tmp_path / "final"))
    assert torch.equal(read(tmp_path / "final")(ids).logits, trained)
    assert (tmp_path / "final" / "tokenizer.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "targets"), [("gpt2", None), ("llama", ["q_proj", "v_proj", "o_proj"])])
def test_peft_trains_adapters_on_it(student, ids, tmp_path, family: str, targets: list[str] | None) -> None:
    from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model

    student(family).save_pretrained(tmp_path / "out")
    before = read(tmp_path / "out")(ids).logits
    model = get_peft_model(read(tmp_path / "out"), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, 0.03)
    for _ in range(4):
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    expected = model.eval()(input_ids=ids).logits
    assert far(expected, before)
    greedy = {"do_sample": False, "max_new_tokens": 5}
    text = model.generate(input_ids=ids, **greedy)
    model.save_pretrained(tmp_path / "adapter")
    size = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert size < 2 * 4 * sum(p.numel() for p in trained) + 8000  # the adapter alone, no embeddings
    for loaded in (
        PeftModel.from_pretrained(read(tmp_path / "out"), tmp_path / "adapter"),
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", trust_remote_code=True),
        read(tmp_path / "adapter"),
    ):
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=0, atol=1e-5)
        assert torch.equal(loaded.generate(input_ids=ids, **greedy), text)
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(attnopt.load(tmp_path / "merged")(ids).logits, expected, rtol=0, atol=1e-4)
    injected = read(tmp_path / "adapter")
    injected.save_pretrained(tmp_path / "injected")
    assert not (tmp_path / "injected" / "model.safetensors").exists()  # as transformers does with injected adapters
    torch.testing.assert_close(read(tmp_path / "injected")(ids).logits, expected, rtol=0, atol=1e-5)


CHOICE = """
task: attnopt_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITING = """
task: attnopt_writing
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.slow
def test_lm_eval_measures_it_on_a_task_of_ones_own(student, tmp_path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is a development dependency")
    model = student("llama")
    model.save_pretrained(tmp_path / "out")
    questions = ["Anna the king", "Bela a of in", "Cyrus river house stone", "Dora the"]
    choices = [" water and Anna .", " light green old"]
    right = [likelier(model, question, choices) for question in questions]
    labels = [right[0], right[1], right[2], 1 - right[3]]
    rows = [{"question": q, "choices": choices, "label": i} for q, i in zip(questions, labels, strict=True)]
    (tmp_path / "rows.json").write_text("\n".join(json.dumps(row) for row in rows))
    for name, task in {"choice": CHOICE, "writing": WRITING}.items():
        (tmp_path / f"{name}.yaml").write_text(task.replace("DATA", str(tmp_path / "rows.json")))
    arguments = f"--model hf --model_args pretrained={tmp_path / 'out'},trust_remote_code=True --device cpu"
    arguments += f" --tasks attnopt_choice,attnopt_writing --include_path {tmp_path} --output_path {tmp_path / 'said'}"
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "lm_eval", *arguments.split()]
    ended = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=280)
    assert ended.returncode == 0, ended.stderr[-3000:]
    (said,) = (tmp_path / "said").rglob("results_*.json")
    results = json.loads(said.read_text())["results"]
    assert results["attnopt_choice"]["acc,none"] == 0.75
    assert 0 <= results["attnopt_writing"]["exact_match,none"] <= 1


@torch.no_grad()
def likelier(model: Any, question: str, choices: list[str]) -> int:
    """Which choice the model gives the higher probability."""
    scores = []
    start = len(model.tokenizer(question).input_ids)
    for choice in choices:
        ids = model.tokenizer(question + choice, return_tensors="pt").input_ids
        log_p = torch.log_softmax(model(ids).logits[0, start - 1 : -1], -1)
        scores.append(log_p.gather(1, ids[0, start:, None]).sum())
    return int(torch.stack(scores).argmax())
