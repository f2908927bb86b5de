"""The study that is made for a conversion: candidates that need no training, searched, the mix found measured.

What the committed studies found worth it: windows with sinks, and keys and values of 4 or 8 bits (docs/search.md).
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML

from attnopt.convert.request import SAMPLE, Request

MIX = "converted"
"""The student's name in the study."""
BASELINES = ("window", "kv_int4")
"""Variants that are measured beside it: the same state without a search, and what most people do."""
BLOCK, TRAINED_BATCH = 512, 2
SINKS = 4
Sections = dict[str, Any]


def candidates(state: float) -> dict[str, tuple[str, Sections]]:
    """By name: the mechanism and its section, of everything that may stand in a layer."""
    windows = {"window": state, "window_half": state / 2, "window_quarter": state / 4}
    found: dict[str, tuple[str, Sections]] = {
        name: ("window", {"sinks": SINKS, "state": {"share": share}}) for name, share in windows.items()
    }
    return found | {f"kv_int{bits}": ("quantised", {"bits": bits}) for bits in (4, 8)}


def chosen(state: float, shares: Mapping[str, float]) -> list[str]:
    """The three that are searched: half a window and what makes up for it.

    Args:
        shares: what each candidate that fits holds of softmax's state in every layer.
    """
    other = "window_quarter" if state < shares.get("kv_int4", 1.0) else "kv_int8"
    wanted = [name for name in ("window_half", other, "kv_int4") if name in shares]
    return wanted if len(wanted) > 1 else ["window", *wanted]


def study(request: Request, searched: Sequence[str], text: str | None, positions: int) -> Sections:
    """params.yaml before the search.

    Args:
        searched: names of candidates. text: a folder with the three splits.
        positions: that the model has.
    """
    length, known = request.length, candidates(request.state)
    names = [*dict.fromkeys([*BASELINES[:1], *searched, *BASELINES[1:]])]
    block = min(BLOCK, max(8, length // 2))
    shifted = request.train > 0 and length > block
    pairs = min(64, max(2, length // 64))
    return {
        "variants": {name: known[name][0] for name in names},
        "seeds": [0],
        "corpus": corpus(request, text, block),
        "teacher": request.teacher() | {"logits": "online"} | ({"shift": 0.5, "shift_to": length} if shifted else {}),
        "state": {"share": request.state, "length": length},
        "distill": {"steps": 0, "batch": 1, "fit": False, "valid_blocks": 1, "checkpoint_every": 10},
        "search": {
            "variants": list(searched),
            "budgets": [request.state],
            "length": length,
            "blocks": 1 if length > 1024 else 2,
            "every": 16 if length > 1024 else 4,
            "pairs": pairs,
            "items": 2,
            "restored": False,
            "rescored": 4,
            "rounds": 2,
            "draws": 0,
            "held_out": 2,
            "batch": 1,
        },
        "evaluate": {
            "batch": max(1, 1024 // length),
            "lengths": [length],
            "documents": 8,
            "recall": recall(length, pairs),
            "probe_blocks": 2,
        },
        "sample": {"prompts": PROMPTS, "new_tokens": min(48, positions // 2)},
        "bench": {
            "phases": ["prefill", "decode"],
            "lengths": [length],
            "operation_lengths": [],
            "min_iterations": 3 if length > 1024 else 10,
            "max_seconds": 60.0,
        },
        "report": {
            "title": f"{request.name} at {length} tokens, within {request.state:g} of softmax’s state",
            "lengths": [length],
        },
    } | {name: known[name][1] for name in names}


PROMPTS = ["Hello, my name is", "The meaning of life is", "In a shocking turn of events,"]


def corpus(request: Request, text: str | None, block: int) -> Sections:
    """The section `corpus`: as much training text as is seen once."""
    most = max(1, request.train * TRAINED_BATCH) * block
    common = {"block": block, "max_tokens": most, "max_eval_tokens": 16 * block}
    if text is not None:
        return {"source": "files", "path": text} | common
    if request.text == SAMPLE or not request.train:  # what nothing learns from need not be sampled
        return {"source": SAMPLE} | common
    return {"source": "teacher", "held_out": SAMPLE} | common


def recall(length: int, pairs: int) -> Sections:
    """Sizes that fit `length` tokens: a copy next to its passage and a quarter of the length away, lists, names."""
    far = {"copy": [0, length // 4]} if length >= 256 else {"copy": [0]} if length >= 128 else {}
    return far | {"pairs": [pairs]} | ({"phone_book": [8]} if length >= 512 else {})


def with_mix(sections: Sections, request: Request, layers: Sequence[str]) -> Sections:
    """The study with the mix found, the layers of which are named; those of softmax stay the teacher's."""
    steps = {"steps": request.train, "batch": TRAINED_BATCH, "lr": 2e-4}
    mix: Sections = {"layers": {i: name for i, name in enumerate(layers) if name != "softmax"}}
    return sections | {"mixes": {MIX: mix | ({"distill": steps} if request.train else {})}}


def as_yaml(sections: Sections) -> str:
    writer, text = YAML(), io.StringIO()
    writer.width = 1000
    writer.dump(sections, text)
    return f"# Made by attnopt convert: the study of this conversion. Its stages run here too.\n{text.getvalue()}"
