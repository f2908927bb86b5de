"""Make the bundled teacher: a small GPT-2 with its own byte-level BPE, trained on Wikipedia prose only.

Training text: the articles of the enwiki sample's train split and WikiText-2's train text, both as natural prose.
Neither corpus' valid or test split is read for training; the sample's valid split gives the perplexity in the record.
"""

import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnopt.corpus import split_documents
from attnopt.wiki import sample_articles, undo_wikitext

VOCAB, BLOCK, BATCH = 4096, 256, 32
END = "<|endoftext|>"
SHAPE = {"n_embd": 256, "n_layer": 4, "n_head": 4}


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


def token_stream(tokenizer, texts: list[str]) -> Tensor:
    """(tokens,) every text followed by the end-of-text token."""
    ids: list[int] = []
    for text in texts:
        ids += [*tokenizer.encode(text), tokenizer.eos_token_id]
    return torch.from_numpy(np.array(ids, dtype=np.int64))


def epoch_batches(stream: Tensor, epoch: int, seed: int) -> Tensor:
    """(steps, BATCH, BLOCK) blocks of one shuffled pass, cut at an offset that differs from pass to pass."""
    g = torch.Generator().manual_seed(seed * 1000 + epoch)
    offset = int(torch.randint(BLOCK, (), generator=g))
    blocks = stream[offset : offset + (len(stream) - offset) // BLOCK * BLOCK].view(-1, BLOCK)
    blocks = blocks[torch.randperm(len(blocks), generator=g)]
    return blocks[: len(blocks) // BATCH * BATCH].view(-1, BATCH, BLOCK)


@torch.no_grad()
def perplexity(model, stream: Tensor) -> float:
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


def pretrain(wikitext: Path, out: Path, steps: int, lr: float, seed: int, checkpoint: Path, log=print) -> dict:
    """Train the bundled teacher and write it to `out`; goes on from `checkpoint` where one lies.

    Args:
        wikitext: WikiText-2's folder with train.txt (the valid and test files are not opened).
        out: folder for the tokenizer, the float16 safetensors and training.json.
        steps: optimizer steps of BATCH x BLOCK tokens.
    Returns: the training record.
    """
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    splits = split_documents([text for _, text in sample_articles()])
    wiki_texts = re.split(r"\n\n(?== )", undo_wikitext((wikitext / "train.txt").read_text(encoding="utf-8")))
    texts = splits["train"] + wiki_texts
    tokenizer = train_tokenizer(texts)
    stream, valid = token_stream(tokenizer, texts), token_stream(tokenizer, splits["valid"])
    set_seed(seed)
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=BLOCK,
        bos_token_id=0,
        eos_token_id=0,
        attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh",
        **SHAPE,
    )
    model = GPT2LMHeadModel(config).train()
    opts = optimizers(model, lr)
    first, spent, history = 0, 0.0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["opts"], strict=True):
            opt.load_state_dict(saved)
        first, spent, history = state["step"], state["seconds"], state["history"]

    @torch.compile
    def loss_of(block: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=block, use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1).float(), block[:, 1:].flatten())

    per_epoch = len(epoch_batches(stream, 0, seed)) - 1
    epoch, batches = -1, stream
    started = time.time() - spent
    for step in range(first, steps):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            batches = epoch_batches(stream, epoch, seed)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = lr * rate(step, steps)
        loss = loss_of(batches[step % per_epoch])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        if (step + 1) % 20 == 0:
            tokens = (step + 1 - first) * BATCH * BLOCK / (time.time() - started - spent + 1e-9)
            log(f"step {step + 1}/{steps}  loss {loss.item():.3f}  {tokens:,.0f} tokens/s")
        if (step + 1) % 200 == 0 or step + 1 == steps:
            history.append({"step": step + 1, "loss": loss.item(), "valid_perplexity": perplexity(model, valid)})
            log(json.dumps(history[-1]))
            state = {"model": model.state_dict(), "opts": [o.state_dict() for o in opts]}
            state |= {"step": step + 1, "seconds": time.time() - started, "history": history}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
            save(model, tokenizer, out, {"history": history, "tokens": (step + 1) * BATCH * BLOCK, "lr": lr})
    return history[-1]


def save(model, tokenizer, out: Path, record: dict) -> None:
    import copy

    out.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
