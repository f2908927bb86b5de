"""Let models write, and judge the writing."""

import math
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from attnopt.core.errors import UserError
from attnopt.evaluation.params import SampleParams
from attnopt.ops.divergence import forward_kl
from attnopt.records.sample import SampleRow


def distinct(text: str, n: int) -> float:
    """Distinct-n: the share of a text's word n-grams that are different (Li et al. 2016); 1 for a text without any."""
    grams = _grams(text, n)
    return len(set(grams)) / len(grams) if grams else 1.0


def repetition(text: str, n: int = 4) -> float:
    """Seq-rep-n: the share of word n-grams that stood before in the same text (Welleck et al. 2020)."""
    return 1.0 - distinct(text, n)


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return list(zip(*(words[i:] for i in range(n)), strict=False))


@torch.no_grad()
def log_probs(model: Any, prompt_ids: list[int], new_ids: list[int]) -> Tensor:
    """(new, V) what the model predicts for each token of a continuation, given the prompt and the tokens before."""
    ids = torch.tensor([[*prompt_ids, *new_ids]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt_ids) - 1 : -1]
    return torch.log_softmax(logits.float(), -1)


def perplexity_of(model: Any, prompt_ids: list[int], new_ids: list[int]) -> float | None:
    """The model's perplexity of a continuation given its prompt; None for an empty continuation."""
    if not new_ids:
        return None
    log_p = log_probs(model, prompt_ids, new_ids)
    scored = log_p[range(len(new_ids)), new_ids]
    return math.exp(min(-float(scored.mean()), 50.0))


def token_kl(teacher: Any, student: Any, prompt_ids: list[int], new_ids: list[int]) -> list[float]:
    """KL(teacher || student) in nats at each token of a continuation, both given the same tokens before it."""
    log_p, log_q = (log_probs(model, prompt_ids, new_ids) for model in (teacher, student))
    return [round(kl, 5) for kl in forward_kl(log_p, log_q).tolist()]


def token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text of each token; joined they are the decoded text. A character of several tokens is the last one's."""
    text, ends = tokenizer.decode(ids), [0]
    for count in range(1, len(ids)):
        whole = tokenizer.decode(ids[:count]).rstrip("\N{REPLACEMENT CHARACTER}")
        ends.append(min(max(len(whole), ends[-1]), len(text)))
    return [text[start:stop] for start, stop in pairwise([*ends, len(text)])] if ids else []


@dataclass(frozen=True)
class Continuation:
    """What a model wrote.

    Attributes:
        prompt_ids, ids: tokens of the prompt and of the continuation, up to the end of the text.
        tokens: the texts of the continuation's tokens. seconds: the batch's, shared out evenly.
    """

    prompt: str
    text: str
    prompt_ids: list[int]
    ids: list[int]
    tokens: list[str]
    seconds: float


@torch.no_grad()
def write_texts(model: Any, tokenizer: Any, prompts: list[str], params: SampleParams, seed: int) -> list[Continuation]:
    """Continue every prompt `per_prompt` times, decoding through the model's own state; all in one padded batch.

    Raises: UserError where a prompt has no token.
    """
    texts = [prompt for prompt in prompts for _ in range(params.per_prompt)]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    for text, mask in zip(texts, batch["attention_mask"], strict=True):
        if not mask.any():
            raise UserError(f"the prompt {text!r} has no token: a text to continue is needed")
    batch = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    torch.manual_seed(seed)
    started = time.perf_counter()
    out = model.generate(
        **batch,
        do_sample=True,
        temperature=params.temperature,
        top_k=params.top_k,
        max_new_tokens=params.new_tokens,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    seconds = (time.perf_counter() - started) / len(texts)
    return [
        _sample(*row, tokenizer, seconds)
        for row in zip(texts, batch["input_ids"], batch["attention_mask"], out, strict=True)
    ]


def _sample(text: str, prompt: Any, mask: Any, out: Any, tokenizer: Any, seconds: float) -> Continuation:
    new = out[len(prompt) :].tolist()
    if tokenizer.eos_token_id in new:
        new = new[: new.index(tokenizer.eos_token_id)]
    written = tokenizer.decode(new)
    prompt_ids = prompt[mask.bool()].tolist()
    return Continuation(text, written, prompt_ids, new, token_texts(tokenizer, new), seconds)


def judge_text(sample: Continuation, original: Continuation, teacher: Any, student: Any) -> SampleRow:
    """The record of one student's continuation beside the teacher's own, both scored by the teacher."""
    return SampleRow(
        prompt=sample.prompt,
        text=sample.text,
        teacher_text=original.text,
        distinct_1=distinct(sample.text, 1),
        distinct_2=distinct(sample.text, 2),
        repetition=repetition(sample.text),
        teacher_repetition=repetition(original.text),
        teacher_ppl=perplexity_of(teacher, sample.prompt_ids, sample.ids),
        teacher_text_ppl=perplexity_of(teacher, original.prompt_ids, original.ids),
        tokens=sample.tokens,
        token_kl=token_kl(teacher, student, sample.prompt_ids, sample.ids),
        seconds=round(sample.seconds, 4),
    )
