"""What cannot be done, refused before any work: by the model itself, and by the text cut as the stages will."""

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from attnopt.convert.request import SAMPLE, Request
from attnopt.convert.study import candidates, chosen
from attnopt.convert.text import Documents, is_split, read_texts
from attnopt.core.device import resolve_device
from attnopt.core.errors import UserError
from attnopt.corpus.encode import Encoder, document_sizes
from attnopt.corpus.params import CorpusParams
from attnopt.corpus.sources import HELD_OUT, Source, open_sources, source_of
from attnopt.mechanisms.shared.sizing import softmax_bytes
from attnopt.student.attach import attach, resolve_swap
from attnopt.student.budget import options_within
from attnopt.student.layers import attention_layers, describe_layer
from attnopt.student.params import StateParams
from attnopt.student.swap import Swap
from attnopt.teacher.model import load_teacher
from attnopt.teacher.params import TeacherParams


class Checked(NamedTuple):
    """searched: names of candidates. positions: that the model has. texts: to be written; None where they are split
    already, or there is no folder. layers: that the model has. seconds: of a forward pass over the length."""

    searched: list[str]
    positions: int
    texts: Documents | None
    layers: int
    seconds: float


def check(request: Request) -> Checked:
    """Raises UserError, one line, where the conversion is not possible."""
    texts = _texts(request)
    model, tokenizer = load_teacher(TeacherParams.model_validate(request.teacher()))
    attach(copy.deepcopy(model), Swap("softmax"))
    positions = model.config.max_position_embeddings
    if request.length > positions:
        raise UserError(f"--length {request.length}: {request.name} has {positions} positions")
    if getattr(tokenizer, "eos_token_id", None) is None or not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(f"{request.model}: a fast tokenizer with an end-of-text token is needed")
    shares = _shares(model, request)
    _check_text(request, tokenizer, texts)
    layers, seconds = len(attention_layers(model)), _seconds(model, request.length)
    return Checked(chosen(request.state, shares), positions, texts, layers, seconds)


@torch.no_grad()
def _seconds(model: Any, length: int) -> float:
    model = model.to(resolve_device("auto"))
    began = time.perf_counter()
    model(torch.zeros(1, length, dtype=torch.long, device=model.device), use_cache=False, logits_to_keep=1).logits.cpu()
    return time.perf_counter() - began


def _texts(request: Request) -> Documents | None:
    if request.text in (None, SAMPLE) or is_split(Path(str(request.text))):
        return None
    return read_texts(Path(str(request.text)))


def _shares(model: Any, request: Request) -> dict[str, float]:
    """What each candidate holds of softmax's state in a layer, of those that can be made.

    Raises: UserError where the smallest mix, the smallest candidate in every layer, is above the budget.
    """
    geometry = describe_layer(model, attention_layers(model)[0])
    whole, found, why = softmax_bytes(geometry, request.length, model.dtype), {}, ""
    for name, (kind, section) in candidates(request.state).items():
        options = {key: value for key, value in section.items() if key != "state"}
        cls, given = resolve_swap(Swap(kind, options))
        budget = StateParams(share=section["state"]["share"], length=request.length) if "state" in section else None
        try:
            made = options_within(cls, given, budget, geometry, model.dtype)
            found[name] = cls(geometry, made).state_bytes(1, request.length, model.dtype) / whole
        except ValueError as error:
            why = why or str(error)
    if "window" not in found:
        raise UserError(f"--state {request.state:g} is less than the smallest mix holds: {why}")
    return found


def _check_text(request: Request, tokenizer: Any, texts: Documents | None) -> None:
    """Raises UserError where a held-out split has no document of the length."""
    held, encoder = _sources(request, texts), Encoder(tokenizer)
    for split in HELD_OUT:
        longest = max(document_sizes(held[split], encoder), default=0)
        if longest < request.length:
            whose = f"--text {request.text}" if request.text else "the bundled text (name your own with --text)"
            raise UserError(
                f"{whose}: no document to measure on ({split}) has {request.length} tokens, the longest has {longest}"
            )


def _sources(request: Request, texts: Documents | None) -> Mapping[str, Source]:
    if texts is not None:
        return {split: source_of([text for _, text in found]) for split, found in texts.items()}
    own = request.text not in (None, SAMPLE)
    return open_sources(CorpusParams(source="files", path=request.text) if own else CorpusParams())
