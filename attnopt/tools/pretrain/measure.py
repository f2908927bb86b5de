"""What the bundled teacher must do, measured on articles that it was not trained on."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnopt.evaluation.recall import Score, copy_items, recall_items, score_items, words_of
from attnopt.tools.pretrain.text import token_stream

PASSAGE, CUE = 32, 4
ALONG = {"perplexity": (128,), "gaps": (0, 128, 512), "copies": 32, "pairs": (8, 32), "lists": 10}
FINAL = {"perplexity": (128, 256, 512, 1024), "gaps": (0, 32, 128, 256, 512), "copies": 200,
         "pairs": (4, 8, 16, 32, 48), "lists": 40}  # fmt: skip
CHECK = {"perplexity": (128,), "gaps": (64,), "copies": 10, "pairs": (16,), "lists": 3}
HOW = {
    "perplexity": "per token, the enwiki sample's valid articles cut into blocks of so many tokens, all but each "
    "block's first token predicted",
    "copy": f"valid articles: a passage of {PASSAGE} tokens, the text that follows it (so many tokens), the passage "
    "again; top-1 and nats per token of the second copy after its first token, and nats of the same tokens in the "
    "first copy",
    "copy_after_cue": f"the same after the second copy's first {CUE} tokens, which tell which passage comes again",
    "recall": "so many random words of the valid articles to uniform numbers of four digits (`apple => 4831 ;`), then "
    "every word again in random order; the share of words of whose number every token is the arg-max",
}


@torch.no_grad()
def perplexity(model: Any, stream: Tensor, block: int, tokens: int = 8192) -> float:
    """Per token of `stream` (tokens,) cut into blocks; `tokens` is how many go through the model at a time."""
    total = count = 0.0
    for ids in stream[: len(stream) // block * block].view(-1, block).split(max(1, tokens // block)):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        total += F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
        count += ids[:, 1:].numel()
    return math.exp(total / count)


def figures(model: Any, tokenizer: Any, texts: list[str], sizes: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Perplexity by block, copying by gap and recall by pairs of a model, on the held-out `texts`.

    Args:
        sizes: blocks, gaps and pairs to measure at, and how many copies and lists of each: `ALONG` or `FINAL`.
    """

    def logits_of(ids: Tensor) -> Tensor:
        return model(input_ids=ids, use_cache=False).logits

    training = model.training
    model.eval()
    stream, words = token_stream(tokenizer, texts), words_of(texts)
    copies, cued = (
        {gap: copy_items(stream, sizes["copies"], PASSAGE, gap, seed, cue=cue) for gap in sizes["gaps"]}
        for cue in (1, CUE)
    )
    recalls = {n: recall_items(tokenizer, words, n, sizes["lists"], seed) for n in sizes["pairs"]}
    found = {
        "perplexity": {str(block): round(perplexity(model, stream, block), 3) for block in sizes["perplexity"]},
        "copy": {str(gap): _fields(score_items(logits_of, items)) for gap, items in copies.items()},
        "copy_after_cue": {str(gap): _fields(score_items(logits_of, items)) for gap, items in cued.items()},
        "recall": {str(n): _fields(score_items(logits_of, items)) for n, items in recalls.items()},
    }
    model.train(training)
    return found


def _fields(score: Score) -> dict[str, Any]:
    return {name: round(value, 4) for name, value in vars(score).items()}
