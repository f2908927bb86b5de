"""Synthetic records of a whole run, made of the record types themselves: plausible shapes, meaningless numbers."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from attnopt.records.base import Environment, Record
from attnopt.records.bench import BenchEnvironment, BenchRecord, Measurement
from attnopt.records.corpus import CorpusManifest, SplitCounts
from attnopt.records.distill import Budget, CoefficientRow, DistillRecord, HistoryRow, PhaseRow, write_rows
from attnopt.records.evaluate import CheckpointQuality, EvaluateRecord, Quality
from attnopt.records.sample import CheckpointSamples, SampleRecord, SampleRow
from attnopt.records.teacher import StoredSplit, TeacherManifest, TeacherShape

from . import probed, sought, stretched

# (kind, final KL, unfitted KL, state growth, ms per token at 128, more per token of context, trained parameters)
VARIANTS: dict[str, tuple[str, float, float, str, float, float, int]] = {
    "softmax": ("softmax", 0.0, 0.0, "linear", 3.0, 0.0008, 0),
    "finetuned": ("softmax", 0.04, 0.0, "linear", 3.0, 0.0008, 590_000),
    "random_start": ("softmax", 0.35, 3.1, "linear", 3.0, 0.0008, 590_000),
    "none": ("none", 2.9, 3.4, "constant", 1.9, 0.0, 0),
    "window": ("window", 0.31, 0.9, "window", 3.1, 0.0, 590_000),
    "window_untrained": ("window", 0.9, 0.9, "window", 3.1, 0.0, 0),
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
"""Variants whose trainings keep checkpoints."""
LENGTHS = {"model": [128, 256, 512, 1024, 2048, 4096], "operation": [1024, 4096, 16384]}
PROMPTS = ["Hello, my name is", "The meaning of life is", "In a shocking turn of events,"]
CANDIDATES = ["last:1", "last:2", "last:3", "last:4", "last:5", "first:2"]
ENVIRONMENT = Environment(
    cpu="Example CPU 9000", cores=2, ram_gib=15.6, os="Linux 6.1", python="3.11.2", threads=2,
    attnopt="0.1.0", torch="2.13.0", transformers="5.23.0", device="cpu",
)  # fmt: skip
WEIGHTS_MIB = 17
NASTY = '</script><b onclick="x()">|`` pipe & "quotes" ünïcode 漢字 \u2028 *stars* \n# heading\n'


def write(root: Path, variants: list[str] | None = None, seeds: list[int] | None = None) -> dict[str, str]:
    """A project folder with records of every stage; hedgehog has one seed only. Returns variant -> kind."""
    chosen = {name: VARIANTS[name][0] for name in variants or VARIANTS}
    _write(_corpus(), root / "data/corpus/manifest.json")
    _write(_teacher(), root / "data/teacher/manifest.json")
    (root / "params.yaml").write_text("variants:\n" + "".join(f"  {n}: {k}\n" for n, k in chosen.items()))
    for name in chosen:
        for seed in [0] if name == "hedgehog" else (SEEDS if seeds is None else seeds):
            _run(root, name, seed)
        _write(_bench(name), root / f"results/bench/{name}/record.json")
    _write(sought.search_record(ENVIRONMENT), root / "results/search/record.json")
    return chosen


def _write(record: Record, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    record.write(path)


def _control(name: str) -> str | None:
    return "leaks" if "bidirectional" in name else None


def _run(root: Path, name: str, seed: int) -> None:
    rng = np.random.default_rng([seed, *name.encode()])
    kind, target, unfitted, _, _, _, _ = VARIANTS[name]
    spread = 0.12 if kind == "performer" else 0.02
    kl = target * float(np.exp(spread * rng.standard_normal()))
    about = {"variant": name, "kind": kind, "control": _control(name), "seed": seed, "key": "k"}
    about |= {"environment": ENVIRONMENT}
    base = root / "results/distill" / name / str(seed)
    _write(_distilled(about, unfitted, kl), base / "record.json")
    write_rows(base / "history.csv", _history(rng, unfitted * 0.6, kl), HistoryRow)
    if kind == "masks":
        write_rows(base / "coefficients.csv", _coefficients(rng), CoefficientRow)
    splits = {"valid": _quality(rng, kl * 0.98), "test": _quality(rng, kl)}
    probes = probed.probes(rng, name, kind, kl)
    samples = _samples(rng, name, kl)
    kept = KEPT.items() if name in SAVING else ()
    evaluated = [CheckpointQuality(step=step, splits=_both(rng, kl * more)) for step, more in kept]
    written = [_kept_samples(rng, name, step, kl * more) for step, more in kept]
    settings = {"temperature": 0.7, "top_k": 50, "new_tokens": 64}
    _write(
        EvaluateRecord(**about, splits=splits, checkpoints=evaluated, **probes, **stretched.at_length(name, kind, kl)),
        root / "results/evaluate" / name / str(seed) / "record.json",
    )
    _write(
        SampleRecord(
            **about, settings=settings, samples=samples, checkpoints=written, recall=stretched.written(name, kind)
        ),
        root / "results/sample" / name / str(seed) / "record.json",
    )


def _distilled(about: dict[str, Any], unfitted: float, kl: float) -> DistillRecord:
    name, kind, seed = about["variant"], about["kind"], about["seed"]
    parameters, fitted = VARIANTS[name][-1], unfitted * 0.6
    ends = {"transfer": fitted * 0.5, "distill": kl * 0.98} if parameters else {}
    shared = {"lr": 1e-3, "mechanism_lr": 1e-3, "train": "attention", "trained_parameters": parameters}
    shared |= {"steps": 100, "tokens": 102_400, "seconds": 15.5, "flops": int(1.6e12)}
    return DistillRecord(
        **about,
        options={"features": 256 if name.endswith("256") else 64} if kind == "performer" else {},
        layers=[0, 1, 2, 3],
        start="random" if name == "random_start" else "teacher",
        data_seed=seed,
        features_seed=seed,
        budget=Budget(steps=200, tokens=204_800, batch=8, block=128, lr=1e-3, train="attention"),
        precision="float32",
        processes=1,
        kl_start_unfitted=unfitted,
        kl_start=fitted,
        kl_end=kl * 0.98,
        phases=[PhaseRow(phase=phase, kl_end=end, **shared) for phase, end in ends.items()],
        flops=int(3.2e12),
        trained_parameters=parameters,
        total_parameters=3_100_000,
        seconds=31.0,
        cpu_seconds=58.0,
        tokens_per_s=6600.0,
    )


def _history(rng: np.random.Generator, start: float, end: float) -> list[HistoryRow]:
    steps = np.arange(0, 201, 10)
    kl = end + (start - end) * np.exp(-steps / 45) * np.exp(0.05 * rng.standard_normal(len(steps)))
    same = {"tokens_per_s": 6600.0, "rss_mib": 900.0, "gpu_allocated_mib": 0.0, "gpu_reserved_mib": 0.0}
    return [
        HistoryRow(
            phase="transfer" if step < 100 else "distill",
            step=step,
            tokens=step * 1024,
            loss=9e3 if step < 100 else value,
            kl=None if step < 100 else value,
            valid_kl=None if step % 50 else value * 1.02,
            lr=5e-4 * (1 + math.cos(math.pi * step / 200)),
            grad_norm=1 / (1 + step / 20),
            wall_s=step * 0.15,
            cpu_s=step * 0.29,
            **same,
        )
        for step, value in zip(steps.tolist(), kl.tolist(), strict=True)
    ]


def _coefficients(rng: np.random.Generator) -> list[CoefficientRow]:
    rows = []
    for layer in range(4):
        for i, name in enumerate(CANDIDATES):
            final = 4 * math.exp(-i * (0.5 + 0.3 * layer)) - 3 + 0.2 * float(rng.standard_normal())
            for step in range(0, 201, 20):
                value = 1 / (1 + math.exp(-final * (1 - math.exp(-step / 60))))
                rows.append(CoefficientRow(step=step, layer=layer, head=0, name=name, value=value))
    return rows


def _both(rng: np.random.Generator, kl: float) -> dict[str, Quality]:
    return {"valid": _quality(rng, kl * 0.98), "test": _quality(rng, kl)}


def _quality(rng: np.random.Generator, kl: float) -> Quality:
    teacher, ratio = 88.0, math.exp(0.8 * kl)
    position = np.arange(1, 128)
    curve = kl * (0.5 + 0.75 * (position / 127) ** 0.3) * np.exp(0.03 * rng.standard_normal(127))
    return Quality(
        tokens=81_000,
        blocks=638,
        kl_forward=kl,
        kl_forward_se=0.02 * kl,
        kl_reverse=kl * 1.2,
        jsd=min(0.2 * kl, 0.6),
        top1_agreement=math.exp(-0.5 * kl),
        ce=math.log(teacher * ratio),
        teacher_ce=math.log(teacher),
        ppl_token=teacher * ratio,
        ppl_word=310 * ratio**1.3,
        ppl_byte=2.6 * ratio**0.25,
        teacher_ppl_token=teacher,
        teacher_ppl_word=310.0,
        teacher_ppl_byte=2.6,
        ppl_ratio=ratio,
        kl_by_position=[] if kl == 0 else curve.tolist(),
        kl_by_class=probed.by_class(kl),
    )


def _samples(rng: np.random.Generator, name: str, kl: float) -> list[SampleRow]:
    bad = 2.5 if "bidirectional" in name else kl
    samples = []
    for prompt in PROMPTS:
        noise = float(np.exp(0.1 * rng.standard_normal()))
        text = f" {name} says{NASTY}" + " and so on" * int(3 + 4 * bad)
        tokens = ["", *re.findall(r"\W*\w+|\W+$", text)]
        values = [4 * bad * noise, *np.linspace(0, 3 * bad * noise, len(tokens) - 1).tolist()]
        sample = SampleRow(
            prompt=prompt,
            text=text,
            teacher_text=" the teacher's words, of which there are some, and then a few more of them." * 2,
            distinct_1=0.9 - 0.15 * bad * noise,
            distinct_2=0.98 - 0.1 * bad * noise,
            repetition=0.03 + 0.1 * bad * noise,
            teacher_repetition=0.02,
            teacher_ppl=18 * math.exp(bad * noise),
            teacher_text_ppl=19.0,
            tokens=tokens,
            token_kl=values,
            seconds=0.4,
        )
        samples.append(sample)
    return samples


def _kept_samples(rng: np.random.Generator, name: str, step: int, kl: float) -> CheckpointSamples:
    """Fewer samples than of the final student, and no tokens."""
    samples = _samples(rng, name, kl)[:2]
    bare = [sample.model_copy(update={"tokens": [], "token_kl": []}) for sample in samples]
    return CheckpointSamples(step=step, samples=bare)


def _bench(name: str) -> BenchRecord:
    kind, _, _, _, at_128, per_token, _ = VARIANTS[name]
    rng = np.random.default_rng(list(name.encode()))
    rows = []
    for level, length in [(level, length) for level, lengths in LENGTHS.items() for length in lengths]:
        state = state_bytes(name, length)
        costs = {"variant": (at_128 + per_token * length, 0.09 * length * at_128 / 3, state)}
        costs["softmax"] = (3.0 + 0.0008 * length, 0.08 * length + 4e-5 * length**2, 4096 * length)
        for subject, (decode, prefill, size) in costs.items():
            for phase, centre in (("prefill", prefill), ("decode", decode)):
                samples = centre * np.exp(0.04 * rng.standard_normal(12))
                failed = (name, subject, length) == ("performer_bidirectional", "variant", 16384)
                rows.append(_measurement(level, subject, phase, length, [] if failed else samples.tolist(), size))
    return BenchRecord(
        variant=name,
        kind=kind,
        control=_control(name),
        key="k",
        machine="default",
        hardware="Example CPU 9000, 2 cores, 16 GiB",
        environment=BenchEnvironment(**ENVIRONMENT.model_dump(), dtype="float32", load_before=0.1),
        measurements=rows + _further(rng),
    )


def _further(rng: np.random.Generator) -> list[Measurement]:
    """Training steps, and batches of 8: a step 30 ms, 40 ms with softmax; everything that both agree on."""
    rows = []
    for subject, centre in (("variant", 30.0), ("softmax", 40.0)):
        samples = (centre * np.exp(0.04 * rng.standard_normal(12))).tolist()
        rows.append(_measurement("model", subject, "train", 128, samples, 0, memory_agrees=True))
        rows.append(_measurement("model", subject, "decode", 128, samples, 4096, memory_agrees=True, batch=8))
    return rows


def state_bytes(name: str, length: int) -> int:
    """The planted state of a sequence; softmax's is 4096 bytes a token."""
    kind, _, _, growth, *_ = VARIANTS[name]
    per_token = 4096 if kind == "softmax" else 2048
    return 0 if kind == "none" else {"constant": 270_000, "window": 264_000, "linear": per_token * length}[growth]


def peak_mib(size: int, length: int) -> float:
    """The planted peak of memory of a sequence with a state of this size."""
    return 1 + size / 2**20 + 0.001 * length


def _measurement(
    level: str, subject: str, phase: str, length: int, samples: list[float], size: int, **others: Any
) -> Measurement:
    """Out of memory where there is no sample."""
    times = zip(
        ("q1", "median", "q3"), np.quantile(samples, [0.25, 0.5, 0.75]).tolist() if samples else (), strict=False
    )
    fields = {
        "batch": 1,
        "unit": "ms/token" if phase == "decode" else "ms",
        "samples": samples,
        "peak_mib": peak_mib(size, length),
        "weight_bytes": WEIGHTS_MIB * 2**20,
        "state_bytes": size,
        "state_bytes_declared": size,
        "synthetic_positions": length > 1024,
        "outcome": "ok" if samples else "out-of-memory",
    }
    about = {"level": level, "subject": subject, "phase": phase, "length": length}
    return Measurement(**about, **fields | dict(times) | others)


def _corpus() -> CorpusManifest:
    sizes = {"train": 400_000, "valid": 50_000, "test": 50_000}
    splits = {
        name: SplitCounts(documents=n // 5000, words=n, bytes=6 * n, tokens=int(1.6 * n), blocks=int(1.6 * n) // 128)
        for name, n in sizes.items()
    }
    return CorpusManifest(
        source="enwiki-sample",
        name="sample.bz2",
        sha256="c0ffee" * 10,
        tokenizer="7e" * 32,
        vocabulary=4096,
        block=128,
        splits=splits,
    )


def _teacher() -> TeacherManifest:
    config = TeacherShape(
        architecture="GPT2LMHeadModel", parameters=4_400_000, layers=4, heads=4, kv_heads=4, head_dim=64, hidden=256,
        vocab=4096, positions=1024,
    )  # fmt: skip
    return TeacherManifest(
        source={"source": "bundled", "id": None},
        fingerprint="beef" * 16,
        logits="hidden",
        config=config,
        corpus="c0ffee" * 10,
        splits={"test": StoredSplit(form="hidden", bytes_per_token=512.0, blocks=625, bytes=40_960_000, parts=[])},
        environment=ENVIRONMENT,
    )
