"""Tiny models of several families that can be swapped, and inputs for them."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

from attnopt.student.attach import attach
from attnopt.student.swap import Swap

COMMON = {"vocab_size": 99, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LLAMA = {**COMMON, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
GPT2 = {**COMMON, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}
FAMILIES: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "gpt2 scaled by layer": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True)),
    "llama gqa": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, num_key_value_heads=2)),
    "llama mqa": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, num_key_value_heads=1)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**LLAMA, num_key_value_heads=2)),
    "gpt-neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**LLAMA)),
}
UNSWAPPABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "falcon": (lambda: hf.FalconForCausalLM(hf.FalconConfig(**{k: v for k, v in LLAMA.items() if k != "intermediate_size"})), "0 of 3 layers ran"),
    "gptj": (lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**{**GPT2, "rotary_dim": 4})), "0 of 3 layers ran"),
    "bloom": (lambda: hf.BloomForCausalLM(hf.BloomConfig(**{**COMMON, "hidden_size": 32, "n_layer": 3, "n_head": 4})), "0 of 3 layers go"),
    "sliding": (lambda: hf.MistralForCausalLM(hf.MistralConfig(**LLAMA, num_key_value_heads=2, sliding_window=8)), "not full attention"),
}  # fmt: skip
"""With why they are refused."""
IDS = torch.randint(1, 99, (2, 11), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones_like(IDS)
PADDED[0, :4] = 0


def teacher(family: str) -> Any:
    torch.manual_seed(0)
    return FAMILIES[family]().eval()


def pair(family: str, kind: str = "softmax") -> tuple[Any, Any]:
    original = teacher(family)
    return original, attach(copy.deepcopy(original), Swap(kind))
