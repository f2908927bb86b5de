"""What the bundled teacher reads: Wikipedia prose, and a byte-level BPE trained on it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnopt.core.errors import UserError
from attnopt.corpus.sources import split_documents
from attnopt.corpus.wikipedia import sample_articles, undo_wikitext

VOCAB, POSITIONS = 4096, 1024
END = "<|endoftext|>"
TEXT = (
    "WikiText-2 train (sentences with <unk> dropped, spacing undone) and the enwiki sample's train articles; CC BY-SA"
)


def training_text(wikitext: Path) -> tuple[list[str], list[str], int]:
    """The documents to train on, the sample's valid articles, which are for measurements only, and how many of the
    first, from the start on, are the sample's.

    Args:
        wikitext: WikiText-2's folder with train.txt; its valid and test files are not opened.

    Raises:
        UserError: train.txt is missing.
    """
    file = wikitext / "train.txt"
    if not file.is_file():
        raise UserError(f"{file} is missing: pretrain needs the folder of the tokenised WikiText-2")
    splits = split_documents([text for _, text in sample_articles()])
    prose = undo_wikitext(file.read_text(encoding="utf-8"))
    return splits["train"] + re.split(r"\n\n(?== )", prose), splits["valid"], len(splits["train"])


def train_tokenizer(texts: list[str], vocab: int = VOCAB, length: int = POSITIONS) -> Any:
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
