"""Synthetic records of a whole run: plausible shapes and orderings, numbers that mean nothing."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import probed

# (kind, final KL, unfitted KL, state growth, ms per token at 128, more per token of context, trained parameters)
VARIANTS: dict[str, tuple[str, float, float, str, float, float, int]] = {
    "softmax": ("softmax", 0.0, 0.0, "linear", 3.0, 0.0008, 0),
    "finetuned": ("softmax", 0.04, 0.0, "linear", 3.0, 0.0008, 590_000),
    "random_start": ("softmax", 0.35, 3.1, "linear", 3.0, 0.0008, 590_000),
    "none": ("none", 2.9, 3.4, "constant", 1.9, 0.0, 0),
    "window": ("window", 0.31, 0.9, "window", 3.1, 0.0, 590_000),
    "masks": ("masks", 0.42, 1.9, "window", 3.0, 0.0, 590_048),
    "performer": ("performer", 0.66, 2.6, "constant", 3.4, 0.0, 590_000),
    "performer_256": ("performer", 0.44, 2.4, "constant", 4.1, 0.0, 590_000),
    "performer_bidirectional": ("performer_bidirectional", 0.12, 2.5, "linear", 6.0, 0.004, 590_000),
    "nsa": ("nsa", 0.17, 0.7, "linear", 4.6, 0.0001, 612_000),
    "based": ("based", 0.22, 1.6, "constant", 4.0, 0.0, 655_000),
    "hedgehog": ("hedgehog", 0.26, 1.4, "constant", 3.9, 0.0, 640_000),
    "linformer": ("linformer", 0.29, 1.2, "linear", 3.6, 0.0002, 598_000),
    "routing": ("routing", 0.21, 0.8, "linear", 5.2, 0.0001, 590_000),
}
SEEDS = [0, 1]
KEPT = {50: 2.0, 100: 1.4}
"""Checkpoints: step -> KL relative to the final student's."""
SAVING = ["window", "masks", "based", "linformer", "performer_bidirectional", "none"]
"""Variants whose trainings keep checkpoints; records of the others are older and do not name them."""
LENGTHS = {"model": [128, 256, 512, 1024, 2048, 4096], "operation": [1024, 4096, 16384]}
PROMPTS = ["Hello, my name is", "The meaning of life is", "In a shocking turn of events,"]
CANDIDATES = ["last:1", "last:2", "last:3", "last:4", "last:5", "first:2"]
ENVIRONMENT = {
    "cpu": "Example CPU 9000",
    "cores": 2,
    "ram_gib": 15.6,
    "os": "Linux 6.1",
    "python": "3.11.2",
    "threads": 2,
}
ENVIRONMENT |= {"attnopt": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "device": "cpu", "dtype": "float32"}
MEMORY = {"memory_gib": 16.0, "weights_mib": 17.0, "sequence_mib": 2.0}
FIT = {"variant": 8000, "softmax": 1000}
"""Sequences that fit, by subject."""
NASTY = '</script><b onclick="x()">|`` pipe & "quotes" ünïcode 漢字 \u2028 *stars* \n# heading\n'


def write(root: Path, variants: list[str] | None = None, seeds: list[int] | None = None) -> dict[str, str]:
    """A project folder with records of every stage; hedgehog has one seed only. Returns variant -> kind."""
    chosen = {name: VARIANTS[name][0] for name in variants or VARIANTS}
    _json(root / "data/corpus/manifest.json", _corpus())
    _json(root / "data/teacher/manifest.json", _teacher())
    (root / "params.yaml").write_text("variants:\n" + "".join(f"  {n}: {k}\n" for n, k in chosen.items()))
    for name in chosen:
        for seed in [0] if name == "hedgehog" else (SEEDS if seeds is None else seeds):
            _run(root, name, seed)
        _json(root / f"results/bench/{name}/record.json", _bench(name))
    return chosen


def _run(root: Path, name: str, seed: int) -> None:
    rng = np.random.default_rng([seed, *name.encode()])
    kind, target, unfitted, _, _, _, parameters = VARIANTS[name]
    spread = 0.12 if kind == "performer" else 0.02
    kl = target * float(np.exp(spread * rng.standard_normal()))
    fitted = unfitted * 0.6
    who = {"variant": name, "kind": kind, "seed": seed, "control": "leaks" if "bidirectional" in name else None}
    base = root / "results/distill" / name / str(seed)
    options = {"features": 256 if name.endswith("256") else 64} if kind == "performer" else {}
    budget = {"steps": 200, "tokens": 204_800, "batch": 8, "block": 128, "lr": 1e-3, "train": "attention"}
    record = who | {"options": options, "layers": [0, 1, 2, 3], "budget": budget, "kl_start_unfitted": unfitted}
    record |= {"kl_start": fitted, "kl_end": kl * 0.98, "trained_parameters": parameters, "total_parameters": 3_100_000}
    halves = {"transfer": fitted * 0.5, "distill": kl * 0.98} if parameters else {}
    record["stages"] = [{"stage": s, "steps": 100, "tokens": 102_400, "kl_end": end} for s, end in halves.items()]
    record |= {"flops": 3.2e12, "data_seed": seed, "features_seed": seed}
    record["start"] = "random" if name == "random_start" else "teacher"
    record |= {"seconds": 31.0, "cpu_seconds": 58.0, "tokens_per_s": 6600.0, "environment": ENVIRONMENT}
    _json(base / "record.json", record)
    _history(rng, fitted, kl).to_csv(base / "history.csv", index=False)
    if kind == "masks":
        _coefficients(rng).to_csv(base / "coefficients.csv", index=False)
    splits = {"valid": _quality(rng, kl * 0.98), "test": _quality(rng, kl)}
    evaluated = who | {"splits": splits, "environment": ENVIRONMENT}
    evaluated |= probed.probes(rng, name, kind, kl)
    sampled = _samples(rng, name, kl)
    if name in SAVING:
        evaluated["checkpoints"] = [_evaluated(rng, step, kl * more) for step, more in KEPT.items()]
        sampled["checkpoints"] = [_sampled(rng, name, step, kl * more) for step, more in KEPT.items()]
    _json(root / "results/evaluate" / name / str(seed) / "record.json", evaluated)
    _json(root / "results/sample" / name / str(seed) / "record.json", who | sampled)


def _history(rng: np.random.Generator, start: float, end: float) -> pd.DataFrame:
    steps = np.arange(0, 201, 10)
    kl = end + (start - end) * np.exp(-steps / 45) * np.exp(0.05 * rng.standard_normal(len(steps)))
    valid = np.where(steps % 50 == 0, kl * 1.02, np.nan)
    early = steps < 100
    rows = {"stage": np.where(early, "transfer", "distill"), "step": steps, "tokens": steps * 1024}
    rows |= {"loss": np.where(early, 9e3, kl), "kl": np.where(early, np.nan, kl), "valid_kl": valid}
    rows |= {"lr": 5e-4 * (1 + np.cos(np.pi * steps / 200)), "grad_norm": 1 / (1 + steps / 20), "tokens_per_s": 6600.0}
    rows |= {"wall_s": steps * 0.15, "cpu_s": steps * 0.29, "rss_mib": 900.0, "gpu_allocated_mib": 0.0}
    return pd.DataFrame(rows | {"gpu_reserved_mib": 0.0})


def _coefficients(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for layer in range(4):
        for i, name in enumerate(CANDIDATES):
            final = 4 * math.exp(-i * (0.5 + 0.3 * layer)) - 3 + 0.2 * rng.standard_normal()
            alphas = {step: final * (1 - math.exp(-step / 60)) for step in range(0, 201, 20)}
            rows += [(step, layer, 0, name, 1 / (1 + math.exp(-alpha))) for step, alpha in alphas.items()]
    return pd.DataFrame(rows, columns=["step", "layer", "head", "name", "value"])


def _quality(rng: np.random.Generator, kl: float) -> dict[str, Any]:
    teacher, ratio = 88.0, math.exp(0.8 * kl)
    position = np.arange(1, 128)
    curve = kl * (0.5 + 0.75 * (position / 127) ** 0.3) * np.exp(0.03 * rng.standard_normal(127))
    perplexity = {"ppl_token": teacher * ratio, "ppl_word": 310 * ratio**1.3, "ppl_byte": 2.6 * ratio**0.25}
    perplexity |= {"teacher_ppl_token": teacher, "teacher_ppl_word": 310.0, "teacher_ppl_byte": 2.6, "ppl_ratio": ratio}
    return perplexity | {
        "tokens": 81_000,
        "kl_forward": kl,
        "kl_forward_se": 0.02 * kl,
        "kl_reverse": kl * 1.2,
        "jsd": min(0.2 * kl, 0.6),
        "top1_agreement": math.exp(-0.5 * kl),
        "ce": math.log(teacher * ratio),
        "kl_by_class": probed.by_class(kl),
        "kl_by_position": [] if kl == 0 else list(curve),
    }


def _samples(rng: np.random.Generator, name: str, kl: float) -> dict[str, Any]:
    bad = 2.5 if "bidirectional" in name else kl
    samples = []
    for prompt in PROMPTS:
        noise = float(np.exp(0.1 * rng.standard_normal()))
        text = f" {name} says{NASTY}" + " and so on" * int(3 + 4 * bad)
        teacher_text = " the teacher's words, of which there are some, and then a few more of them." * 2
        scores = {"distinct_1": 0.9 - 0.15 * bad * noise, "distinct_2": 0.98 - 0.1 * bad * noise}
        scores |= {"repetition": 0.03 + 0.1 * bad * noise, "teacher_ppl": 18 * math.exp(bad * noise)}
        texts = {"prompt": prompt, "text": text, "teacher_text": teacher_text, "teacher_text_ppl": 19.0}
        tokens = ["", *re.findall(r"\W*\w+|\W+$", text)]
        values = [4 * bad * noise, *np.linspace(0, 3 * bad * noise, len(tokens) - 1)]
        samples.append(texts | scores | {"tokens": tokens, "token_kl": list(map(float, values)), "seconds": 0.4})
    return {"settings": {"temperature": 0.7, "top_k": 50, "new_tokens": 64}, "samples": samples}


def _evaluated(rng: np.random.Generator, step: int, kl: float) -> dict[str, Any]:
    return {"step": step, "splits": {"valid": _quality(rng, kl * 0.98), "test": _quality(rng, kl)}}


def _sampled(rng: np.random.Generator, name: str, step: int, kl: float) -> dict[str, Any]:
    """Fewer samples than of the final student, and no tokens."""
    samples = _samples(rng, name, kl)["samples"][:2]
    lists = ("tokens", "token_kl")
    return {"step": step, "samples": [{k: v for k, v in sample.items() if k not in lists} for sample in samples]}


def _bench(name: str) -> dict[str, Any]:
    kind, _, _, growth, at_128, per_token, _ = VARIANTS[name]
    rng = np.random.default_rng(list(name.encode()))
    rows = []
    for level, length in [(level, length) for level, lengths in LENGTHS.items() for length in lengths]:
        state = {"constant": 270_000, "window": 140_000, "linear": 2048 * length}[growth]
        costs = {"variant": (at_128 + per_token * length, 0.09 * length * at_128 / 3, state)}
        costs["softmax"] = (3.0 + 0.0008 * length, 0.08 * length + 4e-5 * length**2, 4096 * length)
        for subject, (decode, prefill, size) in costs.items():
            for phase, centre, unit in (("prefill", prefill, "ms"), ("decode", decode, "ms/token")):
                samples = centre * np.exp(0.04 * rng.standard_normal(12))
                rows.append({"level": level} | _measurement(subject, phase, length, unit, samples, size))
                if (name, subject, length) == ("performer_bidirectional", "variant", 16384):
                    rows[-1] |= {"outcome": "out-of-memory", "samples": [], "median": None, "q1": None, "q3": None}
    shared = {"variant": name, "kind": kind, "control": "leaks" if "bidirectional" in name else None}
    capacity = [{"length": 4096, "subject": subject, "sequences": n, **MEMORY} for subject, n in FIT.items()]
    shared |= {"measurements": rows + _further(rng), "capacity": capacity}
    return shared | {"machine": "default", "environment": ENVIRONMENT}


def _further(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Training steps, and batches of 8: a step 30 ms, 40 ms with softmax; everything that both agree on."""
    rows = []
    for subject, centre in (("variant", 30.0), ("softmax", 40.0)):
        samples = centre * np.exp(0.04 * rng.standard_normal(12))
        step = {"level": "model"} | _measurement(subject, "train", 128, "ms", samples, 0)
        more = {"level": "model"} | _measurement(subject, "decode", 128, "ms/token", samples, 4096) | {"batch": 8}
        rows += [row | {"memory_agrees": True} for row in (step, more)]
    return rows


def _measurement(subject: str, phase: str, length: int, unit: str, samples: np.ndarray, size: int) -> dict[str, Any]:
    q1, median, q3 = (float(q) for q in np.quantile(samples, [0.25, 0.5, 0.75]))
    row = {"phase": phase, "length": length, "batch": 1, "subject": subject, "unit": unit}
    row |= {"samples": list(map(float, samples)), "median": median, "q1": q1, "q3": q3}
    row |= {"peak_mib": 20 + size / 2**20 + 0.02 * length, "state_bytes": size, "state_bytes_declared": size}
    return row | {"synthetic_positions": length > 1024, "outcome": "ok", "noisy": False}


def _corpus() -> dict[str, Any]:
    sizes = {"train": 400_000, "valid": 50_000, "test": 50_000}
    splits = {
        name: {
            "documents": n // 5000,
            "words": n,
            "bytes": 6 * n,
            "tokens": int(1.6 * n),
            "blocks": int(1.6 * n) // 128,
        }
        for name, n in sizes.items()
    }
    return {"source": "enwiki-sample", "sha256": "c0ffee" * 10, "tokenizer": "7e" * 32, "block": 128, "splits": splits}


def _teacher() -> dict[str, Any]:
    config = {"parameters": 4_400_000, "layers": 4, "heads": 4, "kv_heads": 4, "head_dim": 64, "hidden": 256}
    config |= {"vocab": 4096, "positions": 1024}
    return {"fingerprint": "beef" * 16, "source": {"source": "bundled", "id": None}, "config": config, "splits": {}}


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
