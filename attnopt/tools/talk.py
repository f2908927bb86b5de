"""Let a student write while one reads along: what `attnopt generate` and `attnopt chat` do.

Every token goes through the student's own decoding state. What is written goes to stdout, its speed and the size of
the state to stderr.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import TextStreamer

from attnopt.core.errors import UserError
from attnopt.core.foreign import printable
from attnopt.student.state import StateCache

Emit = Callable[[str], None]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: the `top_k` likeliest, at a temperature; new_tokens: at most so many."""

    new_tokens: int = 64
    temperature: float = 0.7
    top_k: int = 50


@dataclass(frozen=True)
class Written:
    """A continuation and what it cost.

    Attributes:
        ids: (1, T) of prompt and continuation. text: of the continuation, without special tokens.
        prompt, tokens: how many of either. read: of the prompt, how many were not in the state before.
        first, rest: seconds to the first new token, and from there to the last.
        state_bytes: held by the state's tensors at the end.
    """

    ids: Tensor
    text: str
    prompt: int
    tokens: int
    read: int
    first: float
    rest: float
    state_bytes: int

    def line(self) -> str:
        """The costs in one line; the first token counts to the prompt, out of which it comes."""
        speed = f", {(self.tokens - 1) / self.rest:.1f} tokens/s" if self.tokens > 1 and self.rest > 0 else ""
        read = f"{self.read} tokens read in {self.first:.2f} s"
        return f"{self.tokens} tokens{speed}; {read}; state {self.state_bytes:,} bytes at {self.ids.shape[1]} tokens"


class _Stream(TextStreamer):
    """Hands text on as soon as it is certain, and notes when tokens came."""

    def __init__(self, tokenizer: Any, emit: Emit):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.emit, self.parts, self.times = emit, list[str](), list[float]()

    def put(self, value: Tensor) -> None:
        if not self.next_tokens_are_prompt:
            self.times.append(time.perf_counter())
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.parts.append(text)
        self.emit(text)


@torch.no_grad()
def write(model: Any, ids: Tensor, how: Sampling, emit: Emit, cache: StateCache | None = None) -> Written:
    """Continue one sequence and hand on its text as it comes.

    Args:
        model: a student with its tokenizer.
        ids: (1, T) all tokens so far, those that the cache has seen too.
        cache: a state that has seen the first tokens of `ids`, which is continued in place; None: a fresh one.
    """
    cache = StateCache(model.config.num_hidden_layers) if cache is None else cache
    read = ids.shape[1] - cache.get_seq_length()
    stream, started = _Stream(model.tokenizer, emit), time.perf_counter()
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        streamer=stream,
        do_sample=True,
        temperature=how.temperature,
        top_k=how.top_k,
        max_new_tokens=how.new_tokens,
        use_cache=True,
        pad_token_id=_padding(model.tokenizer),
    )
    first, last = stream.times[0], stream.times[-1]
    tokens = out.shape[1] - ids.shape[1]
    text, state_bytes = "".join(stream.parts), cache.state_bytes()
    return Written(out, text, ids.shape[1], tokens, read, first - started, last - first, state_bytes)


def _tokenizer(model: Any) -> Any:
    """Raises UserError where a student was exported without."""
    if model.tokenizer is None:
        raise UserError("the folder holds no tokenizer: export the student again from one that has it")
    return model.tokenizer


def _padding(tokenizer: Any) -> int | None:
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def _room(model: Any, prompt: int) -> int:
    """New tokens for which the model has positions. Raises UserError where there are none."""
    positions = getattr(model.config, "max_position_embeddings", None) or 2**31
    if prompt >= positions:
        raise UserError(f"{prompt} tokens leave no room for new ones: the model has {positions} positions")
    return positions - prompt


def generate(model: Any, prompt: str, how: Sampling, seed: int) -> Written:
    """Print a prompt and its continuation as it comes, and then its costs.

    Raises: UserError where the prompt has no token or the model has not as many positions.
    """
    ids = _tokenizer(model)(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"].to(model.device)
    if not ids.numel():
        raise UserError(f"the prompt {prompt!r} has no token: a text to continue is needed")
    if how.new_tokens > (room := _room(model, ids.shape[1])):
        raise UserError(f"new-tokens: {how.new_tokens} are more than the {room} positions after the prompt")
    torch.manual_seed(seed)
    _print(prompt)
    written = write(model, ids.long(), how, _print)
    _print("\n")
    print(written.line(), file=sys.stderr)
    return written


class Chat:
    """A conversation by the tokenizer's own chat template.

    The state goes on from turn to turn where the template writes earlier turns as they were read and written; where it
    does not, the conversation is read anew.
    """

    def __init__(self, model: Any, how: Sampling, system: str | None = None):
        """Raises: UserError where the model has no tokenizer with a chat template."""
        if _tokenizer(model).chat_template is None:
            raise UserError("its tokenizer has no chat template: `attnopt generate` continues a text")
        self.model, self.how = model, how
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        self.seen, self.cache = torch.empty(1, 0, dtype=torch.long), self._fresh()

    def reply(self, message: str, emit: Emit) -> Written:
        """The model's answer, handed on as it comes.

        Raises: UserError where the template refuses the conversation or it has grown too long; it is then as before.
        """
        asked = [*self.messages, {"role": "user", "content": message}]
        ids = self._ids(asked)
        how = replace(self.how, new_tokens=min(self.how.new_tokens, _room(self.model, ids.shape[1])))
        had = self.cache.get_seq_length()
        if had >= ids.shape[1] or not torch.equal(ids[:, :had].cpu(), self.seen[:, :had].cpu()):
            self.cache = self._fresh()
        written = write(self.model, ids, how, emit, self.cache)
        self.messages = [*asked, {"role": "assistant", "content": written.text}]
        self.seen = written.ids
        return written

    def _fresh(self) -> StateCache:
        return StateCache(self.model.config.num_hidden_layers)

    def _ids(self, messages: list[dict[str, str]]) -> Tensor:
        try:
            found = self.model.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        except TemplateError as error:
            raise UserError(f"its chat template refuses the conversation: {error}") from None
        return found["input_ids"].to(self.model.device)


def chat(model: Any, how: Sampling, seed: int, system: str | None = None, lines: Iterable[str] | None = None) -> None:
    """Talk until the input ends; every answer is followed by its costs.

    Args:
        lines: what the user says; None: from stdin, with a prompt where that is a terminal.
    Raises: UserError as `Chat` does.
    """
    talk = Chat(model, how, system)
    torch.manual_seed(seed)
    try:
        for line in _typed() if lines is None else lines:
            if line.strip():
                written = talk.reply(line.strip(), _print)
                _print("\n")
                print(written.line(), file=sys.stderr)
    except KeyboardInterrupt:
        _print("\n")


def _typed() -> Iterator[str]:
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            return
        yield line


def _print(text: str) -> None:
    print(printable(text), end="", flush=True)
