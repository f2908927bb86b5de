"""What is streamed is what `generate` writes; a chat goes on from its state and says the same as one read anew."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from attnopt.cli import main
from attnopt.core.errors import UserError
from attnopt.mechanisms.base import Mechanism
from attnopt.mechanisms.shared import compiled
from attnopt.student.attach import attach
from attnopt.student.state import StateCache
from attnopt.student.swap import Swap
from attnopt.tools import talk

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ m.role }} : {{ m.content }}{% endfor %}{% if add_generation_prompt %} assistant :{% endif %}"
)
HOW = talk.Sampling(new_tokens=6, top_k=20)


@pytest.fixture
def model(tiny: Path) -> Any:
    """A student of 64 positions that writes any token as it is read again."""
    student = attach(AutoModelForCausalLM.from_pretrained(tiny / "teacher"), Swap("window", {"window": 8, "sinks": 1}))
    student.tokenizer = AutoTokenizer.from_pretrained(tiny / "teacher")
    student.tokenizer.chat_template = TEMPLATE
    student.generation_config.eos_token_id = None
    return student


def test_the_stream_is_what_generate_writes_token_by_token(model, capsys) -> None:
    parts: list[str] = []
    ids = model.tokenizer("Anna the king", return_tensors="pt").input_ids
    torch.manual_seed(3)
    written = talk.write(model, ids, talk.Sampling(new_tokens=30, top_k=20), parts.append)
    torch.manual_seed(3)
    cache = StateCache(2)
    expected = model.generate(
        ids, do_sample=True, temperature=HOW.temperature, top_k=20, max_new_tokens=30, past_key_values=cache
    )
    assert torch.equal(written.ids, expected)
    assert "".join(parts) == written.text == model.tokenizer.decode(expected[0, ids.shape[1] :])
    assert len([part for part in parts if part]) > 1
    assert (written.prompt, written.tokens, written.read) == (ids.shape[1], 30, ids.shape[1])
    assert written.state_bytes == cache.state_bytes() > 0
    assert written.first > 0
    assert written.rest > 0
    assert f"30 tokens, {29 / written.rest:.1f} tokens/s" in written.line()
    assert f"state {written.state_bytes:,} bytes at {ids.shape[1] + 30} tokens" in written.line()


def test_a_prompt_with_its_new_tokens_fits_the_positions(model) -> None:
    ids = torch.arange(1, 60)[None]
    assert talk.write(model, ids, talk.Sampling(new_tokens=5), lambda _: None).ids.shape == (1, 64)
    with pytest.raises(UserError, match=r"new-tokens: 63 are more than the 6\d positions after the prompt"):
        talk.generate(model, "Anna the", talk.Sampling(new_tokens=63), 0)
    with pytest.raises(UserError, match="leave no room for new ones: the model has 64 positions"):
        talk.generate(model, "Anna the king and " * 30, HOW, 0)


def said(model: Any, afresh: bool) -> tuple[list[talk.Written], talk.Chat]:
    conversation, written = talk.Chat(model, HOW, system="a king"), []
    for message in (" Anna the stone", " Bela"):
        if afresh:
            conversation.seen = torch.zeros_like(conversation.seen)
        torch.manual_seed(5)
        written.append(conversation.reply(message, lambda _: None))
    return written, conversation


def test_a_chat_goes_on_from_its_state(model, monkeypatch: pytest.MonkeyPatch) -> None:
    again = model.tokenizer.apply_chat_template

    def as_written(messages: Any, **options: Any) -> Any:
        """A template that round-trips: what was written stands in the next turn token by token."""
        found = again(messages, **options)
        if (turns := [m for m in messages if m["role"] == "assistant"]) and turns[0]["content"] == first.text:
            user = model.tokenizer(" user : Bela assistant :", return_tensors="pt").input_ids
            found["input_ids"] = torch.cat([first.ids, user], 1)
        return found

    first = said(model, afresh=True)[0][0]
    monkeypatch.setattr(model.tokenizer, "apply_chat_template", as_written)
    (_, anew), _ = said(model, afresh=True)
    (_, on), conversation = said(model, afresh=False)
    assert torch.equal(on.ids, anew.ids)
    assert on.read == on.prompt - (first.ids.shape[1] - 1) < anew.read == anew.prompt
    assert [m["role"] for m in conversation.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_a_conversation_that_changed_is_read_anew(model) -> None:
    talked = talk.Chat(model, HOW)
    torch.manual_seed(0)
    talked.reply(" Anna", lambda _: None)
    talked.messages[0]["content"] = " Bela the river"
    assert (second := talked.reply(" stone", lambda _: None)).read == second.prompt


def test_a_conversation_ends_where_the_positions_do(model) -> None:
    talked = talk.Chat(model, talk.Sampling(new_tokens=500))
    assert talked.reply(" Anna", lambda _: None).ids.shape[1] == 64
    with pytest.raises(UserError, match="leave no room for new ones"):
        talked.reply(" Anna", lambda _: None)
    assert len(talked.messages) == 2


def test_what_the_template_refuses_is_said(model) -> None:
    talked = talk.Chat(model, HOW)
    talked.messages.append({"role": "tool", "content": ""})
    with pytest.raises(UserError, match="its chat template refuses the conversation: no tools"):
        talked.reply("x", lambda _: None)


@pytest.fixture
def folder(model, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "out")
    return tmp_path / "out"


def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *words: str, stdin: str = "") -> Any:
    """Exit code, stdout and the lines of ours on stderr."""
    monkeypatch.setattr(sys, "argv", ["attnopt", *words])
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_generate_and_chat_on_the_command_line(folder: Path, monkeypatch, capsys) -> None:
    words = ["generate", str(folder), "--prompt", "Anna the king", "--new-tokens", "5"]
    code, out, err = shell(monkeypatch, capsys, *words)
    assert code == 0
    assert out.startswith("Anna the king")
    assert "tokens/s" in err
    assert "bytes at" in err
    assert shell(monkeypatch, capsys, *words)[1] == out  # of one seed
    code, out, err = shell(monkeypatch, capsys, "chat", str(folder), "--new-tokens", "5", stdin=" Anna\n\n Bela\n")
    assert code == 0
    assert len(out.rstrip("\n").split("\n")) >= 2
    assert err.count("tokens/s") == 2
    assert err.count("bytes at") == 2


def test_generate_compiles_where_it_is_asked_to(folder: Path, monkeypatch, capsys) -> None:
    asked: list[list] = []
    monkeypatch.setattr(compiled, "compile_steps", asked.append)
    words = ["generate", str(folder), "--prompt", "Anna the king", "--new-tokens", "2"]
    assert shell(monkeypatch, capsys, *words)[0] == 0
    assert asked == []
    assert shell(monkeypatch, capsys, *words, "--compile")[0] == 0
    assert [isinstance(m, Mechanism) for m in asked[0]].count(True) == len(asked[0]) > 0


def test_chat_needs_a_template(model, tmp_path: Path, monkeypatch, capsys) -> None:
    model.tokenizer.chat_template = None
    model.save_pretrained(tmp_path / "out")
    code, out, err = shell(monkeypatch, capsys, "chat", str(tmp_path / "out"))
    assert (code, out) == (2, "")
    assert "attnopt: its tokenizer has no chat template: `attnopt generate` continues a text" in err
    model.tokenizer = None
    with pytest.raises(UserError, match="holds no tokenizer"):
        talk.generate(model, "x", HOW, 0)


def test_export_on_the_command_line(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    code, out, _ = shell(monkeypatch, capsys, "export", str(folder), str(tmp_path / "new"))
    assert code == 0
    assert f"{tmp_path / 'new'}: read it with transformers" in out
    assert (tmp_path / "new" / "tokenizer.json").is_file()
    assert shell(monkeypatch, capsys, "export", str(folder), str(tmp_path / "new"))[0] == 0  # over an earlier export
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    code, _, err = shell(monkeypatch, capsys, "export", str(folder), str(tmp_path / "mine"))
    assert code == 2
    assert "mine is there and is no exported student: name a new folder, or remove it first" in err
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    code, _, err = shell(monkeypatch, capsys, "export", str(tmp_path / "mine"), str(tmp_path / "x"))
    assert code == 2
    assert "mine is no student" in err
