"""Recall that a model writes itself: greedily, through its own decoding state, right or wrong to the last character.

    copy        a passage T of held-out text as `T`, blank line, `T`, blank line and T's first word; the rest is to come
    phone_book  names with numbers, two of the entries again as examples, and a third name; its number is to come

Both as Jelassi et al. 2024 (arXiv:2402.01032) pose them, with own text and names of the corpus' words. What is written
is judged up to its first line break.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from attnopt.core.errors import UserError
from attnopt.corpus.blocks import Documents
from attnopt.evaluation.params import SampleParams
from attnopt.evaluation.recall import ENOUGH, phone_book, phone_book_text, starts_within, words_of
from attnopt.evaluation.retention import retained
from attnopt.records.evaluate import Task
from attnopt.records.sample import GeneratedRecall

DRAWN = 8
"""How many times as many prompts are drawn as are kept: those of the commonest length, which decode in one batch."""


@dataclass(frozen=True)
class Prompt:
    """Token ids to continue, the text that is right, and how many tokens that takes."""

    ids: tuple[int, ...]
    answer: str
    tokens: int


@dataclass(frozen=True)
class Asked:
    """The prompts of one size."""

    task: Task
    size: int
    prompts: list[Prompt]

    @property
    def tokens(self) -> int:
        """Of the longest prompt with its answer."""
        return max(len(prompt.ids) + prompt.tokens for prompt in self.prompts)


def draw_prompts(params: SampleParams, documents: Documents, tokenizer: Any, positions: int) -> list[Asked]:
    """The prompts of every size of `sample.recall`, for a teacher of so many positions.

    Raises: UserError that names the key where the text does not give such prompts, or one has more tokens than that.
    """
    documents = documents.first(ENOUGH)
    words = words_of(tokenizer.batch_decode(list(documents))) if params.recall.get("phone_book") else []
    draw: dict[Literal["copy", "phone_book"], Callable[[int, np.random.Generator], Iterable[tuple[str, str]]]] = {
        "copy": lambda size, rng: copy_texts(documents, tokenizer, size, DRAWN * params.items, rng),
        "phone_book": lambda size, rng: book_texts(words, size, DRAWN * params.items, rng),
    }
    return [
        _asked(task, size, draw[task], params, tokenizer, positions)
        for task in draw
        for size in params.recall.get(task, [])
    ]


def _asked(task: Task, size: int, draw: Any, params: SampleParams, tokenizer: Any, positions: int) -> Asked:
    key = f"sample.recall.{task}"
    try:
        texts = [*draw(size, np.random.default_rng(params.seed))]
    except ValueError as error:
        raise UserError(f"{key}: {size} is not possible: {error}") from None
    found = Asked(task, size, commonest([_prompt(tokenizer, *text) for text in texts], params.items))
    if found.tokens > positions:
        raise UserError(f"{key}: {size} makes {found.tokens} tokens, the teacher has {positions} positions")
    return found


def _prompt(tokenizer: Any, prompt: str, answer: str) -> Prompt:
    ids, whole = (
        tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in (prompt, prompt + answer)
    )
    return Prompt(tuple(ids), answer, len(whole) - len(ids))


def commonest(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """So many prompts, of as few lengths as possible: padding would be cut out row by row, one forward pass each."""
    frequency = Counter(len(prompt.ids) for prompt in prompts)
    return sorted(prompts, key=lambda prompt: (-frequency[len(prompt.ids)], len(prompt.ids)))[:count]


def copy_texts(
    documents: Documents, tokenizer: Any, passage: int, count: int, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Prompts and answers from passages of so many tokens, line breaks made spaces.

    Raises: ValueError where no document is that long.
    """
    starts, found = starts_within(documents.ends, passage), []
    for start in starts[torch.from_numpy(rng.integers(len(starts), size=count))].tolist():
        text = " ".join(tokenizer.decode(documents.tokens[start : start + passage], skip_special_tokens=True).split())
        first, _, rest = text.partition(" ")
        if rest and "\N{REPLACEMENT CHARACTER}" not in text:  # a character cut in two
            found.append((f"{text}\n\n{text}\n\n{first}", f" {rest}"))
    if not found:
        raise ValueError(f"no passage of {passage} tokens has two words")
    return found


def book_texts(words: Sequence[str], names: int, count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Prompts and answers from phone books of so many names.

    Raises: ValueError where there are fewer words than names.
    """
    if len(words) < names:
        raise ValueError(f"{len(words)} words for {names} names")
    texts = (phone_book_text(phone_book(words, names, rng), rng) for _ in range(count))
    return [(text, f" {number}") for text, number, _ in texts]


@torch.no_grad()
def answered(model: Any, tokenizer: Any, asked: Asked) -> np.ndarray:
    """(prompts,) whether the model writes the answer, and then a line break or nothing that has a letter."""
    right, batches = np.zeros(len(asked.prompts), bool), defaultdict(list)
    for i, prompt in enumerate(asked.prompts):
        batches[len(prompt.ids)].append(i)
    for length, batch in batches.items():
        prompts = [asked.prompts[i] for i in batch]
        ids = torch.tensor([prompt.ids for prompt in prompts], device=model.device)
        new = max(prompt.tokens for prompt in prompts) + 1
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new,
            use_cache=True,
            pad_token_id=tokenizer.eos_token_id,
        )
        texts = tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
        right[batch] = [
            text.split("\n")[0].strip() == prompt.answer.strip() for text, prompt in zip(texts, prompts, strict=True)
        ]
    return right


class Written:
    """What the teacher writes to all prompts, beside which students are held."""

    def __init__(self, teacher: Any, tokenizer: Any, asked: list[Asked]):
        self.tokenizer, self.asked = tokenizer, asked
        self.teacher = [answered(teacher, tokenizer, part) for part in asked]

    def of(self, student: Any) -> list[GeneratedRecall]:
        """A student's rows."""
        return [
            GeneratedRecall(
                task=part.task,
                size=part.size,
                items=len(part.prompts),
                tokens=part.tokens,
                **retained(answered(student, self.tokenizer, part), teacher, np.arange(len(teacher))),
            )
            for part, teacher in zip(self.asked, self.teacher, strict=True)
        ]
