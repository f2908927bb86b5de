"""The bundled teacher's network, its optimizers, and the folder that it is written to."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnopt.core.errors import UserError
from attnopt.core.files import write_json, written_aside
from attnopt.tools.pretrain.circuit import make_circuit, plant_match, plant_shifts
from attnopt.tools.pretrain.text import POSITIONS, VOCAB

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "n_positions": POSITIONS, "n_embd": 256, "n_layer": 5, "n_head": 4, "attn_pdrop": 0.0,
    "activation_function": "gelu_pytorch_tanh", "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
POSITION_RATE = 0.1
MATCHING = ((1, 0), (4, 2))
"""(layer, head) of the heads that are led to where the next token stood before. The first begins as the circuit's: of
the smaller teacher's first layer it is the head that is missed least. The second does so a bit already."""


def grown_model(start: Path, seed: int) -> Any:
    """A network of SHAPE that begins as the smaller teacher in `start`, whose width and vocabulary it shares.

    Added layers stand at the bottom; the last of them, and a head of the layer above it, begin as the circuit that
    copies, the others as identities. Added positions begin as the mean of the smaller teacher's far ones.

    Raises:
        UserError: the smaller teacher has another width or vocabulary, as many layers, or more positions.
    """
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    old = GPT2LMHeadModel.from_pretrained(start, dtype=torch.float32)
    shape = GPT2Config(**SHAPE)
    _refuse_misfit(old.config, shape, start)
    set_seed(seed)
    model = GPT2LMHeadModel(shape).train()
    below = shape.n_layer - old.config.n_layer
    blocks, wte = model.transformer.h, model.transformer.wte
    with torch.no_grad():
        wte.load_state_dict(old.transformer.wte.state_dict())
        model.transformer.ln_f.load_state_dict(old.transformer.ln_f.state_dict())
        for block in blocks[:below]:
            block.attn.c_proj.weight.zero_()
            block.mlp.c_proj.weight.zero_()
        for i, block in enumerate(old.transformer.h):
            blocks[below + i].load_state_dict(block.state_dict())
        circuit = make_circuit(wte.weight, shape.n_positions, shape.n_embd // shape.n_head)
        plant_shifts(blocks[below - 1], circuit, shape.n_head)
        plant_match(blocks[below], circuit, MATCHING[0][1], shape.n_head)
        longer = longer_positions(old.transformer.wpe.weight, shape.n_positions)
        model.transformer.wpe.weight.copy_(longer + circuit.waves)
    return model


def longer_positions(old: Tensor, length: int) -> Tensor:
    """(length, width): the old rows, then the mean of their second half, whose last row was hardly trained."""
    far = old[len(old) // 2 : -1].mean(0, keepdim=True)
    return torch.cat([old, far.expand(length - len(old), -1)])


def _refuse_misfit(old: Any, new: Any, start: Path) -> None:
    for name in ("n_embd", "n_head", "vocab_size"):
        if getattr(old, name) != getattr(new, name):
            raise UserError(f"{start}: {name} is {getattr(old, name)}; a teacher to grow from has {getattr(new, name)}")
    for name, most in (("n_layer", new.n_layer - 1), ("n_positions", new.n_positions)):
        if getattr(old, name) > most:
            raise UserError(f"{start}: {name} is {getattr(old, name)}; at most {most} can be grown from")


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


def rate(step: int, steps: int, warmup: int = 50) -> float:
    """Warm-up, then a linear decay to zero."""
    return min((step + 1) / warmup, (steps - step) / steps)


def save_teacher(model: Any, tokenizer: Any, out: Path, record: dict[str, Any]) -> None:
    """The folder that `from_pretrained` reads, weights in float16, with training.json beside them."""
    with written_aside(out) as aside:
        copy.deepcopy(model).half().save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        write_json(aside / "training.json", record)
