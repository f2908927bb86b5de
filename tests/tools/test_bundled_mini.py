"""The bundled teacher of 256 positions, whose recipe the history of this repository keeps."""

import json

import pytest
import torch
from conftest import ROOT

from attnopt.teacher import model as teacher
from attnopt.teacher.params import TeacherParams
from attnopt.tools.pretrain import measure, text

BUNDLED = ROOT / "attnopt" / "assets" / "mini-gpt2"


def test_the_bundled_teacher_is_small_good_and_free_of_unk() -> None:
    assert (BUNDLED / "model.safetensors").stat().st_size <= 12_000_000
    record = json.loads((BUNDLED / "training.json").read_text())
    assert record["history"][-1]["valid_perplexity"] <= 90
    model, tokenizer = teacher.load_teacher(TeacherParams())
    assert teacher.describe_teacher(model).head_dim == 64
    assert len(tokenizer) == 4096
    torch.manual_seed(0)
    written = model.generate(torch.tensor([[0]] * 8), do_sample=True, max_new_tokens=60, pad_token_id=0)
    assert "unk" not in tokenizer.decode(written.flatten())


@pytest.mark.slow
def test_the_recorded_perplexity_is_that_of_the_committed_weights() -> None:
    model, tokenizer = teacher.load_teacher(TeacherParams())
    valid = text.split_documents([article for _, article in text.sample_articles()])["valid"]
    stream = text.token_stream(tokenizer, valid)[: 40 * 256]
    recorded = json.loads((BUNDLED / "training.json").read_text())["perplexity_of_the_first_40_valid_blocks"]
    assert measure.perplexity(model, stream, 256) == pytest.approx(recorded, rel=0.01)
