"""The bundled teacher as the stages load it."""

import torch
from conftest import ROOT

from attnopt.teacher import model as teacher
from attnopt.teacher.params import TeacherParams

BUNDLED = ROOT / "attnopt" / "assets" / "mini-gpt2"


def test_the_bundled_teacher_is_small_good_and_free_of_unk() -> None:
    assert (BUNDLED / "model.safetensors").stat().st_size <= 12_000_000
    model, tokenizer = teacher.load_teacher(TeacherParams())
    assert teacher.describe_teacher(model).head_dim == 64
    assert len(tokenizer) == 4096
    torch.manual_seed(0)
    written = model.generate(torch.tensor([[0]] * 8), do_sample=True, max_new_tokens=60, pad_token_id=0)
    assert "unk" not in tokenizer.decode(written.flatten())
