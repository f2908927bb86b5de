"""Students that are exported: GPT-2, and a Llama with grouped queries and rotary positions, with a chat template."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from attnopt.student.attach import attach
from attnopt.student.swap import Swap
from attnopt.teacher.model import fused

TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {{ m.content }} . {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
Make = Callable[..., Any]


@pytest.fixture(scope="session", autouse=True)
def own_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers copies modeling files before it runs them: not into the user's home."""
    folder = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_MODULES_CACHE", folder)
        patched.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
        yield


def gpt2(tiny: Path) -> Any:
    return fused(AutoModelForCausalLM.from_pretrained(tiny / "teacher", dtype=torch.float32))


def llama(tiny: Path) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=96, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        initializer_range=0.15,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


FAMILIES = {"gpt2": gpt2, "llama": llama}


@pytest.fixture
def student(tiny: Path) -> Make:
    """`student("llama", Swap("performer"))`: a swapped model with a tokenizer that has a chat template."""

    def make(family: str = "gpt2", swap: Any = None) -> Any:
        model = attach(FAMILIES[family](tiny), swap or Swap("hedgehog", {"window": 8}))
        model.tokenizer = AutoTokenizer.from_pretrained(tiny / "teacher")
        model.tokenizer.pad_token = model.tokenizer.eos_token
        model.tokenizer.chat_template = TEMPLATE
        return model

    return make


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, 300, (2, 30), generator=torch.Generator().manual_seed(1))


def read(folder: Path, **options: Any) -> Any:
    """The folder as a user of transformers reads it."""
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)
