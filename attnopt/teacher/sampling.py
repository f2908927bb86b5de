"""Text sampled from the teacher itself, for where its own training text is not public (LLM-QAT, arXiv:2305.17888)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnopt.core.device import resolve_device
from attnopt.core.progress import progress_bar


@torch.no_grad()
def sample_stream(model: Any, start: int, length: int, batch: int, vocab: int, generator: torch.Generator) -> Tensor:
    """(batch, length) token ids: `start`, then draws from the model's whole distribution at temperature 1.

    Sampling goes on after an end-of-text token, as the blocks of a corpus go on with the next document.

    Args:
        vocab: ids from here on are padding of the model's vocabulary, and never drawn.
    """
    ids = torch.full((batch, length), start, device=model.device)
    past = None
    for i in range(1, length):
        out = model(input_ids=ids[:, i - 1 : i], past_key_values=past, use_cache=True)
        past = out.past_key_values
        p = out.logits[:, -1, :vocab].float().softmax(-1)
        ids[:, i] = p.multinomial(1, generator=generator)[:, 0]
    return ids


def sample_blocks(
    model: Any, tokenizer: Any, block: int, count: int, seed: int = 0, batch: int = 64, progress: Any = iter
) -> np.ndarray:
    """(count, block) token ids, cut from streams of up to 1024 tokens, so that blocks start in mid-text too.

    A function of its arguments: every batch of streams has a generator of its own.
    """
    longest = min(model.config.max_position_embeddings, max(block, 1024))
    per_stream = min(longest // block, count)
    streams = -(-count // per_stream)
    found = []
    for i, first in enumerate(progress(range(0, streams, batch))):
        generator = torch.Generator(model.device).manual_seed(
            int(np.random.SeedSequence([seed, i]).generate_state(1)[0])
        )
        size = min(batch, streams - first)
        drawn = sample_stream(model, tokenizer.eos_token_id, per_stream * block, size, len(tokenizer), generator)
        found.append(drawn.view(-1, block).cpu().numpy())
    return np.concatenate(found)[:count]


def sampler_of(model: Any, tokenizer: Any, block: int, seed: int) -> Callable[[int], np.ndarray]:
    """What gives so many blocks of the teacher's own text, on the fastest device at hand and with progress shown."""
    progress = partial(progress_bar, name="the teacher writes", unit="batch")
    model.to(resolve_device("auto"))
    return partial(sample_blocks, model, tokenizer, block, seed=seed, progress=progress)
