"""The model card of an exported student: what it is, how it is used, and what the study's records say of it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from attnopt.core.paths import MODELS, RESULTS
from attnopt.export.description import Description
from attnopt.records.base import Record
from attnopt.records.bench import BenchRecord, Measurement
from attnopt.records.distill import DistillRecord, StudentCard
from attnopt.records.evaluate import EvaluateRecord

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Facts:
    """What is known of the model itself.

    Attributes:
        architecture: the teacher's class. teacher: how it was named; empty where nobody says.
        base: its id on the hub; None where it has none.
        state: length in tokens, bytes that it remembers of one sequence, and those of softmax.
    """

    architecture: str
    parameters: int
    dtype: str
    teacher: str = ""
    base: str | None = None
    state: list[tuple[int, int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Numbers:
    """A study's records of one student; None where there is none.

    Attributes:
        why: why there are none, where that is known.
        trained_on_from: the folder of the student that was trained on, whose numbers therefore do not hold.
    """

    card: StudentCard | None = None
    distill: DistillRecord | None = None
    evaluate: EvaluateRecord | None = None
    bench: BenchRecord | None = None
    why: str = ""
    trained_on_from: str = ""


def read_numbers(student: Path, card: StudentCard) -> Numbers:
    """The records about a student in models/NAME/SEED, from results/ beside models/.

    Raises: UserError that names the file where one is damaged or of another version.
    """
    models, finished = student.absolute().parents[1].name, card.step is None and student.name == str(card.seed)
    if models != MODELS.name or not finished:
        return Numbers(card, why="the study keeps records of finished students, which this one is not")
    results = student.absolute().parents[2] / RESULTS.name
    own = f"{card.variant}/{card.seed}/record.json"
    distill = _read(DistillRecord, results / "distill" / own)
    if distill is None:
        return Numbers(card, why="the study has no record of it")
    if distill.key != card.key:
        return Numbers(card, why="the study's records are of another training of this variant")
    bench = _read(BenchRecord, results / "bench" / card.variant / "record.json")
    return Numbers(card, distill, _read(EvaluateRecord, results / "evaluate" / own), bench)


def _read(kind: type[R], path: Path) -> R | None:
    return kind.read(path) if path.is_file() else None


def model_card(description: Description, numbers: Numbers, facts: Facts) -> str:
    """The card as Markdown, with the header that the hub reads."""
    parts = [*_header(facts), *_opening(description, numbers, facts), *_usage(), *_state(facts), *_measured(numbers)]
    return "\n".join(parts).rstrip() + "\n"


def _header(facts: Facts) -> list[str]:
    base = [f"base_model: {facts.base}"] if facts.base else []
    tags = ["tags:", "- attnopt", "- custom_code"]
    return ["---", "library_name: transformers", "pipeline_tag: text-generation", *base, *tags, "---", ""]


def _opening(description: Description, numbers: Numbers, facts: Facts) -> list[str]:
    kinds = sorted({row.kind for row in description.layers})
    name = numbers.card.variant if numbers.card else ", ".join(kinds)
    of = f" of {facts.teacher}" if facts.teacher else ""
    lines = [
        f"# {name}",
        "",
        f"A {facts.architecture}{of} in whose attention layers softmax is replaced, made by attnopt "
        f"{description.attnopt}: {facts.parameters:,} parameters, {facts.dtype}.",
        "",
        "| layers | mechanism | options |",
        "|---|---|---|",
    ]
    for layers, row in _runs(description):
        options = ", ".join(f"{key}={value}" for key, value in row.options.items()) or "none"
        lines.append(f"| {layers} | `{row.kind}` | {options} |")
    return [*lines, ""]


def _runs(description: Description) -> Iterator[tuple[str, Any]]:
    """Runs of layers with equal mechanisms, counted from 0."""
    rows, start = description.layers, 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[start]:
            yield (str(start) if i == start + 1 else f"{start} to {i - 1}"), rows[start]
            start = i


def _usage() -> list[str]:
    return [
        "## Use",
        "",
        "It needs the Python package attnopt. `trust_remote_code` runs `modeling_attnopt.py` of this folder, which "
        "imports that package and does nothing else.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        "model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)",
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)",
        'ids = tokenizer("The meaning of life is", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0]))",
        "```",
        "",
    ]


def _state(facts: Facts) -> list[str]:
    if not facts.state:
        return []
    rows = [f"| {n:,} | {own:,} | {all_:,} | {own / all_:.3f}× |" for n, own, all_ in facts.state]
    head = ["| tokens seen | bytes | softmax's bytes | share |", "|---:|---:|---:|---:|"]
    return ["## What it remembers of one sequence", "", *head, *rows, ""]


def _measured(numbers: Numbers) -> list[str]:
    lines = ["## Measured", ""]
    if numbers.trained_on_from:
        return [
            *lines,
            f"Nothing: it was trained on from {numbers.trained_on_from}, whose numbers do not hold.",
            "",
        ]
    if numbers.distill is None:
        return [*lines, f"Nothing here{f': {numbers.why}' if numbers.why else ''}.", ""]
    lines += [*_training(numbers.distill)]
    if numbers.evaluate is None:
        lines += ["Its quality was not measured.", ""]
    else:
        lines += [*_quality(numbers.evaluate), *_recall(numbers.evaluate)]
    return [*lines, *(_cost(numbers.bench) if numbers.bench else [])]


def _training(record: DistillRecord) -> list[str]:
    done = [f"{p.phase} ({p.steps} steps, {p.tokens:,} tokens)" for p in record.phases if p.steps]
    if not done:
        return [f"Nothing was trained; seed {record.seed}.", ""]
    return [f"Distilled from the teacher: {', then '.join(done)}; seed {record.seed}.", ""]


def _quality(record: EvaluateRecord) -> list[str]:
    rows = []
    if (test := record.splits.get("test")) is not None:
        ratio = f"{test.ppl_ratio:.3f}×"
        rows.append(("test split, blocks as trained", test.kl_forward, test.kl_forward_se, test.top1_agreement, ratio))
    for at in record.lengths:
        low, high = at.ppl_ratio_low, at.ppl_ratio_high
        interval = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
        ratio = f"{at.ppl_ratio:.3f}×{interval}"
        rows.append((f"documents at {at.length} tokens", at.kl_forward, at.kl_forward_se, at.top1_agreement, ratio))
    return [
        "Beside the teacher, on held-out text (± is one standard error, brackets are 95 % intervals over documents):",
        "",
        "| | KL(teacher, student), nats per token | same first choice | perplexity over the teacher's |",
        "|---|---:|---:|---:|",
        *(f"| {name} | {_with_error(kl, se)} | {top1:.3f} | {ratio} |" for name, kl, se, top1, ratio in rows),
        "",
    ]


def _recall(record: EvaluateRecord) -> list[str]:
    if not record.recall:
        return []
    rows = [
        f"| {r.task} | {r.size} | {r.accuracy:.2f} | {r.teacher_accuracy:.2f} | "
        f"{_with_error(r.kl_answer, r.kl_answer_se)} |"
        for r in record.recall
    ]
    head = ["| recall in context | size | right | teacher | KL of the answer |", "|---|---:|---:|---:|---:|"]
    return [*head, *rows, ""]


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.3g}" if error is None else f"{value:.3g} ± {error:.2g}"


def _cost(record: BenchRecord) -> list[str]:
    rows = []
    for phase in ("prefill", "decode"):
        for own, softmax in _pairs(record.measurements, phase):
            ratio = (own.median or 0) / (softmax.median or 1)
            rows.append(f"| {phase} | {own.length} | {own.median:.4g} {own.unit} | {ratio:.2f}× |")
    if not rows:
        return []
    head = ["| | tokens | median | over softmax's |", "|---|---:|---:|---:|"]
    return [f"Time of the whole model, batch 1, on {record.hardware}:", "", *head, *rows, ""]


def _pairs(measurements: Iterable[Measurement], phase: str) -> Sequence[tuple[Measurement, Measurement]]:
    """The variant and softmax beside it, at every length at which both have a time."""
    own = [m for m in measurements if m.level == "model" and m.phase == phase and m.batch == 1 and m.median is not None]
    softmax = {m.length: m for m in own if m.subject == "softmax"}
    return [(m, softmax[m.length]) for m in own if m.subject == "variant" and m.length in softmax]
