"""The frozen original: loaded from one of four sources, and fingerprinted.

Its final hidden states are all that is needed of it: hidden @ W_head is the exact dense distribution, at C numbers a
token instead of V (for GPT-2: 1.5 KB instead of 100 KB).
"""

import contextlib
import hashlib
import importlib.util
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from attnopt.core.errors import UserError
from attnopt.core.files import sha256
from attnopt.records.corpus import CorpusManifest
from attnopt.records.teacher import TeacherShape
from attnopt.teacher.params import TeacherParams

BUNDLED = "mini-gpt2"


def load_teacher(params: TeacherParams, model: bool = True) -> tuple[Any, Any]:
    """The teacher, in eval mode and without gradients, and its tokenizer. Neither its code nor a pickle is loaded.

    Args:
        model: False loads the tokenizer alone; the first element is then None.
    Raises: UserError naming the key where the source is missing, cannot be reached or is no causal language model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, options = _locate(params)
    options["trust_remote_code"] = False
    weights = {} if "gguf_file" in options else {"use_safetensors": True}  # what else there is are pickles
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        if not model:
            return None, tokenizer
        with without_loading_bars():
            net = AutoModelForCausalLM.from_pretrained(where, dtype=getattr(torch, params.dtype), **options, **weights)
    except (OSError, ValueError, ImportError, KeyError, SafetensorError, RecursionError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"teacher.source {params.source}: {_name(params)} cannot be loaded: {reason}") from None
    return fused(net.eval().requires_grad_(False)), tokenizer


@contextlib.contextmanager
def without_loading_bars() -> Iterator[None]:
    """Keep transformers' own progress bars, and that of its reader of .gguf files, out of ours; for a while."""
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging

    shown, bar = logging.is_progress_bar_enabled(), reader.tqdm
    logging.disable_progress_bar()
    reader.tqdm = lambda tensors, **_: tensors
    try:
        yield
    finally:
        reader.tqdm = bar
        if shown:
            logging.enable_progress_bar()


def fused(model: Any) -> Any:
    """The model with GPT-2's GELU as one kernel, in place: the same tanh form, which transformers spells out in eight
    operations that keep five tensors for the backward pass."""
    from transformers.activations import ACT2FN, FastGELUActivation, NewGELUActivation

    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if isinstance(module, NewGELUActivation | FastGELUActivation):
                setattr(parent, name, ACT2FN["gelu_pytorch_tanh"])
    return model


def _name(params: TeacherParams) -> str:
    return {"bundled": BUNDLED, "hub": params.id, "path": params.path, "gguf": params.path}[params.source] or ""


def _locate(params: TeacherParams) -> tuple[str, dict[str, Any]]:
    """What from_pretrained takes: a folder or hub id, and its options."""
    if params.source == "bundled":
        return str(resources.files("attnopt") / "assets" / BUNDLED), {}
    if params.source == "hub":
        return str(params.id), {"revision": params.revision} if params.revision else {}
    path = Path(str(params.path))
    if params.source == "path":
        if not (path / "config.json").is_file():
            raise UserError(f"teacher.path: {path} is no model folder (it has no config.json)")
        return str(path), {}
    file = path if path.suffix == ".gguf" else _gguf_of_package(str(params.path))
    if not file.is_file():
        raise UserError(f"teacher.path: {file} does not exist")
    return str(file.parent), {"gguf_file": file.name}


def _gguf_of_package(name: str) -> Path:
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    files = sorted(
        Path(p)
        for root in (spec.submodule_search_locations if spec else None) or []
        for p in Path(root).rglob("*.gguf")
    )
    if not files:
        raise UserError(f"teacher.path: '{name}' is neither a .gguf file nor an installed package that carries one")
    return files[0]


def check_tokens(model: Any, tokenizer: Any, corpus: CorpusManifest) -> None:
    """Raises UserError where the corpus (its manifest) was tokenised for another model."""
    if corpus.tokenizer != sha256(tokenizer.backend_tokenizer.to_str()):
        raise UserError("data/corpus was made with another tokenizer: run `dvc repro tokenize`")
    if corpus.vocabulary > model.config.vocab_size:
        vocabularies = f"{corpus.vocabulary} pieces, the model {model.config.vocab_size}"
        raise UserError(f"teacher: its tokenizer has {vocabularies}; they do not belong together")
    positions = model.config.max_position_embeddings
    for key in ("block", "long_block"):
        if positions < (length := getattr(corpus, key) or 0):
            raise UserError(f"corpus.{key}: {length} exceeds the teacher's {positions} positions")


def teacher_fingerprint(model: nn.Module) -> str:
    """sha256 over the names, shapes and values of all weights: which teacher a student belongs to."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy())
    return digest.hexdigest()


def describe_teacher(model: Any) -> TeacherShape:
    """The teacher's shape, for manifests and the report."""
    config = model.config
    heads = config.num_attention_heads
    return TeacherShape(
        architecture=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        hidden=config.hidden_size,
        vocab=config.vocab_size,
        positions=config.max_position_embeddings,
    )
