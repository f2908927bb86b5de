"""The bundled teachers' text: what is read, and the tokenizer made of it."""

from pathlib import Path

import pytest
from conftest import sentences

from attnopt.core.errors import UserError
from attnopt.tools.pretrain import text


def test_training_never_opens_valid_or_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = list(text.sample_articles())
    monkeypatch.setattr(text, "sample_articles", lambda: sample)
    (tmp_path / "train.txt").write_text(" = A = \n \n " + sentences(0, 20))
    texts, valid, home = text.training_text(tmp_path)
    splits = text.split_documents([article for _, article in sample])
    assert valid == splits["valid"]
    assert texts[:home] == splits["train"]
    assert not set(texts) & {*splits["valid"], *splits["test"]}
    with pytest.raises(UserError, match=r"train.txt is missing"):
        text.training_text(tmp_path / "nowhere")


def test_every_text_ends_with_the_end_token() -> None:
    tokenizer = text.train_tokenizer([sentences(0, 50)], vocab=300, length=64)
    stream = text.token_stream(tokenizer, ["Anna and Anna .", "Dora ."]).tolist()
    assert [i for i, token in enumerate(stream) if token == tokenizer.eos_token_id][-1] == len(stream) - 1
    assert stream.count(tokenizer.eos_token_id) == 2
