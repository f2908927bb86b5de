"""Make the bundled teacher: a small GPT-2 with its own byte-level BPE, trained on Wikipedia prose only.

Training text: the articles of the enwiki sample's train split and WikiText-2's train text, both as natural prose.
Neither corpus' valid or test split is read for training; the sample's valid split gives the perplexity in the record.
"""

import copy
import math
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnopt.core.checkpoint import Checkpoint, key_of
from attnopt.core.errors import UserError
from attnopt.core.files import sha256, write_json, written_aside
from attnopt.core.machine import environment
from attnopt.core.progress import progress_bar
from attnopt.corpus.sources import split_documents
from attnopt.corpus.wikipedia import sample_articles, undo_wikitext

VOCAB, BLOCK, BATCH, SAVE_EVERY = 4096, 256, 32, 200
END = "<|endoftext|>"
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "n_positions": BLOCK, "n_embd": 256, "n_layer": 4, "n_head": 4, "attn_pdrop": 0.0,
    "activation_function": "gelu_pytorch_tanh", "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
TEXT = (
    "WikiText-2 train (sentences with <unk> dropped, spacing undone) and the enwiki sample's train articles; CC BY-SA"
)


def train_tokenizer(texts: list[str], vocab: int = VOCAB, length: int = BLOCK) -> Any:
    """Byte-level BPE with GPT-2's pre-tokenisation; <|endoftext|> is id 0, `length` the longest sequence."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab, special_tokens=[END], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, unk_token=END, model_max_length=length
    )


def token_stream(tokenizer: Any, texts: list[str]) -> Tensor:
    """(tokens,) every text followed by the end-of-text token."""
    ids: list[int] = []
    for text in texts:
        ids += [*tokenizer.encode(text, verbose=False), tokenizer.eos_token_id]
    return torch.from_numpy(np.array(ids, dtype=np.int64))


def epoch_batches(stream: Tensor, epoch: int, seed: int) -> Tensor:
    """(steps, BATCH, BLOCK) blocks of one shuffled pass, cut at an offset that differs from pass to pass."""
    g = torch.Generator().manual_seed(seed * 1000 + epoch)
    offset = int(torch.randint(BLOCK, (), generator=g))
    blocks = stream[offset : offset + (len(stream) - offset) // BLOCK * BLOCK].view(-1, BLOCK)
    blocks = blocks[torch.randperm(len(blocks), generator=g)]
    return blocks[: len(blocks) // BATCH * BATCH].view(-1, BATCH, BLOCK)


@torch.no_grad()
def perplexity(model: Any, stream: Tensor) -> float:
    model.eval()
    total = count = 0.0
    for block in stream[: len(stream) // BLOCK * BLOCK].view(-1, BLOCK).split(BATCH):
        logits = model(input_ids=block, use_cache=False).logits[:, :-1].float()
        total += F.cross_entropy(logits.flatten(0, 1), block[:, 1:].flatten(), reduction="sum").item()
        count += block[:, 1:].numel()
    model.train()
    return math.exp(total / count)


def optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, norms and biases (Jordan et al. 2024)."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".h." in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


def rate(step: int, steps: int, warmup: int = 100) -> float:
    """Warm-up, a plateau, and a linear decay to zero over the last half."""
    return min(1.0, (step + 1) / warmup, (steps - step) / (0.5 * steps))


def pretrain(wikitext: Path, out: Path, steps: int, lr: float, seed: int) -> dict[str, Any]:
    """Train the bundled teacher and write it to `out`; goes on where an earlier call with these arguments was stopped.

    Args:
        wikitext: WikiText-2's folder with train.txt (the valid and test files are not opened).
        out: folder for the tokenizer, the float16 safetensors and training.json.
        steps: optimizer steps of BATCH x BLOCK tokens.
    Returns: the training record. Raises: UserError where train.txt is missing.
    """
    texts, valid_texts = training_text(wikitext)
    tokenizer = train_tokenizer(texts)
    stream, valid = token_stream(tokenizer, texts), token_stream(tokenizer, valid_texts)
    checkpoint = Checkpoint(key_of("pretrain", steps, lr, seed, sha256(*texts)))
    with checkpoint.locked(), progress_bar(name="pretrain", unit="step", total=steps) as progress:
        model = new_model(seed)
        opts = optimizers(model, lr)
        step, seconds, history = _resume(checkpoint, model, opts)
        loss_of = torch.compile(partial(_loss, model))
        for block in batches_from(stream, step, steps, seed):
            started = time.perf_counter()
            loss = _step(loss_of, block, model, opts, lr * rate(step, steps))
            step, seconds = step + 1, seconds + time.perf_counter() - started
            progress.update(step - progress.n)
            if step % SAVE_EVERY == 0 or step == steps:
                history.append({"step": step, "loss": loss.item(), "valid_perplexity": perplexity(model, valid)})
                progress.set_postfix(history[-1])
                moving = {"model": model.state_dict(), "opts": [opt.state_dict() for opt in opts]}
                moving |= {"rng": torch.get_rng_state()}
                checkpoint.save({"step": step, "seconds": seconds, "history": history, **moving})
        record: dict[str, Any] = {
            "steps": steps,
            "tokens": steps * BATCH * BLOCK,
            "lr": lr,
            "seed": seed,
            "seconds": round(seconds),
        }
        record |= {"training_text": TEXT, "sha256": sha256(*texts), "history": history, "environment": environment()}
        save_teacher(model, tokenizer, out, record)
    checkpoint.remove()
    return record


def training_text(wikitext: Path) -> tuple[list[str], list[str]]:
    """The documents to train on, and the sample's valid articles for the record's perplexity."""
    file = wikitext / "train.txt"
    if not file.is_file():
        raise UserError(f"{file} is missing: pretrain needs the folder of the tokenised WikiText-2")
    splits = split_documents([text for _, text in sample_articles()])
    prose = undo_wikitext(file.read_text(encoding="utf-8"))
    return splits["train"] + re.split(r"\n\n(?== )", prose), splits["valid"]


def new_model(seed: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    set_seed(seed)
    return GPT2LMHeadModel(GPT2Config(**SHAPE)).train()


def batches_from(stream: Tensor, first: int, steps: int, seed: int) -> Iterator[Tensor]:
    """(BATCH, BLOCK) batches of the steps first .. steps - 1."""
    per_epoch = len(epoch_batches(stream, 0, seed)) - 1
    for epoch in range(first // per_epoch, steps // per_epoch + 1):
        batches = epoch_batches(stream, epoch, seed)
        for step in range(max(first, epoch * per_epoch), min(steps, (epoch + 1) * per_epoch)):
            yield batches[step - epoch * per_epoch]


def _loss(model: Any, block: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=block, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), block[:, 1:].flatten())


def _step(loss_of: Any, block: Tensor, model: Any, opts: list[torch.optim.Optimizer], lr: float) -> Tensor:
    loss = loss_of(block)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for opt in opts:
        for group in opt.param_groups:
            group["lr"] = lr
        opt.step()
        opt.zero_grad()
    return loss.detach()


def _resume(checkpoint: Checkpoint, model: Any, opts: list[torch.optim.Optimizer]) -> tuple[int, float, list]:
    state = checkpoint.load()
    if state is None:
        return 0, 0.0, []
    model.load_state_dict(state["model"])
    for opt, saved in zip(opts, state["opts"], strict=True):
        opt.load_state_dict(saved)
    torch.set_rng_state(state["rng"])
    return state["step"], state["seconds"], state["history"]


def save_teacher(model: Any, tokenizer: Any, out: Path, record: dict[str, Any]) -> None:
    """The folder that `from_pretrained` reads, weights in float16, with training.json beside them."""
    with written_aside(out) as aside:
        copy.deepcopy(model).half().save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        write_json(aside / "training.json", record)
