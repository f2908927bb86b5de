"""The bundled teacher's network, its optimizers, and the folder that it is written to."""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import attnopt
from attnopt.core.errors import UserError
from attnopt.core.files import write_json, written_aside
from attnopt.tools.pretrain.text import POSITIONS, VOCAB

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "n_positions": POSITIONS, "n_embd": 256, "n_layer": 5, "n_head": 4, "attn_pdrop": 0.0,
    "activation_function": "gelu_pytorch_tanh", "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
MINI = Path(attnopt.__file__).parent / "assets" / "mini-gpt2"
WAVES, WAVE_STD, POSITION_RATE = 32, 0.05, 0.1


def grown_model(start: Path, seed: int) -> Any:
    """A network of SHAPE that begins as the smaller teacher in `start`, whose width and vocabulary it shares.

    Added layers stand in the middle and begin as identities. Added positions begin as the mean of the smaller
    teacher's far ones; all of them get sines and cosines on top, so that a head that learns to attend to the token
    before does so at every position at once.

    Raises:
        UserError: the smaller teacher has another width or vocabulary, or more layers or positions.
    """
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    old = GPT2LMHeadModel.from_pretrained(start, dtype=torch.float32)
    shape = GPT2Config(**SHAPE)
    _refuse_misfit(old.config, shape, start)
    set_seed(seed)
    model = GPT2LMHeadModel(shape).train()
    below = (old.config.n_layer + 1) // 2
    added = shape.n_layer - old.config.n_layer
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_proj.weight.zero_()
            block.mlp.c_proj.weight.zero_()
        for i, block in enumerate(old.transformer.h):
            model.transformer.h[i if i < below else i + added].load_state_dict(block.state_dict())
        model.transformer.wte.load_state_dict(old.transformer.wte.state_dict())
        model.transformer.ln_f.load_state_dict(old.transformer.ln_f.state_dict())
        model.transformer.wpe.weight.copy_(longer_positions(old.transformer.wpe.weight, shape.n_positions))
    return model


def longer_positions(old: Tensor, length: int) -> Tensor:
    """(length, width): the old rows, then the mean of their second half, and waves of WAVE_STD in random directions."""
    far = old[len(old) // 2 : -1].mean(0, keepdim=True)
    waves = min(WAVES, old.shape[1] // 2)
    directions = torch.linalg.qr(torch.randn(old.shape[1], old.shape[1]))[0][: 2 * waves]
    scale = WAVE_STD * math.sqrt(old.shape[1] / waves)
    return torch.cat([old, far.expand(length - len(old), -1)]) + scale * sinusoids(length, waves) @ directions


def _refuse_misfit(old: Any, new: Any, start: Path) -> None:
    for name in ("n_embd", "n_head", "vocab_size"):
        if getattr(old, name) != getattr(new, name):
            raise UserError(f"{start}: {name} is {getattr(old, name)}; a teacher to grow from has {getattr(new, name)}")
    for name in ("n_layer", "n_positions"):
        if getattr(old, name) > getattr(new, name):
            raise UserError(f"{start}: {name} is {getattr(old, name)}; at most {getattr(new, name)} can be grown from")


def sinusoids(length: int, waves: int) -> Tensor:
    """(length, 2 * waves) sines and cosines of Vaswani et al. (2017), wavelengths from 2 pi to 2 pi * length."""
    frequency = float(length) ** (-torch.arange(waves) / max(1, waves - 1))
    angle = torch.arange(length)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)


def optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest (Jordan et al. 2024); positions at a tenth of the rate."""
    named = dict(model.named_parameters())
    matrices = [p for n, p in named.items() if p.ndim == 2 and ".h." in n]
    positions = [p for n, p in named.items() if "wpe" in n]
    chosen = {id(p) for p in [*matrices, *positions]}
    others = [p for p in named.values() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": others, "scale": 1.0}, {"params": positions, "scale": POSITION_RATE}]
    return [muon, torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


def set_rate(opts: list[torch.optim.Optimizer], lr: float) -> None:
    for opt in opts:
        for group in opt.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)


def rate(step: int, steps: int, warmup: int = 100) -> float:
    """Warm-up, a plateau, and a linear decay to zero over the last half."""
    return min(1.0, (step + 1) / warmup, (steps - step) / (0.5 * steps))


def save_teacher(model: Any, tokenizer: Any, out: Path, record: dict[str, Any]) -> None:
    """The folder that `from_pretrained` reads, weights in float16, with training.json beside them."""
    with written_aside(out) as aside:
        copy.deepcopy(model).half().save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        write_json(aside / "training.json", record)
