"""The last lines of a conversion: what was found, what it lost, what it costs, where it lies and how it is loaded."""

from itertools import groupby
from pathlib import Path

from attnopt.convert.request import Request
from attnopt.convert.study import MIX
from attnopt.core.paths import REPORTS, RESULTS
from attnopt.records.bench import BenchRecord
from attnopt.records.evaluate import EvaluateRecord
from attnopt.records.search import SearchRecord

STUDENT = Path("student")
"""The student as a plain Hugging Face folder, in the conversion's."""


def findings(folder: Path, request: Request) -> str:
    """From the records in a conversion's folder."""
    results = folder / RESULTS
    search = SearchRecord.read(results / "search" / "record.json")
    found = next(mix for mix in search.mixes if mix.way == "searched")
    evaluated = EvaluateRecord.read(results / "evaluate" / MIX / "0" / "record.json")
    benched = BenchRecord.read(results / "bench" / MIX / "record.json")
    state = evaluated.state_bytes[request.length]
    student = folder / STUDENT
    return "\n".join(
        [
            f"found:  {layer_map(found.layers)}",
            f"lost:   {_lost(evaluated)}",
            f"costs:  {state / search.softmax_bytes:.3f} of softmax's state at {request.length} tokens "
            f"({_size(state)} of {_size(search.softmax_bytes)}){_times(benched)}",
            f"page:   {folder / REPORTS / 'index.html'}",
            f"model:  {student} (its card: {student / 'README.md'})",
            f"use it: attnopt generate {student} --prompt 'Hello'",
            f"    or: AutoModelForCausalLM.from_pretrained('{student}', trust_remote_code=True)",
        ]
    )


def layer_map(layers: list[str]) -> str:
    """Runs of neighbouring layers of the same kind: 0-2 kv_int4, 3 window_half."""
    runs, at = [], 0
    for name, run in groupby(layers):
        size = len(list(run))
        runs.append(f"{at}-{at + size - 1} {name}" if size > 1 else f"{at} {name}")
        at += size
    return "layers " + ", ".join(runs)


def _lost(record: EvaluateRecord) -> str:
    quality = record.lengths[0]
    said = [f"KL {quality.kl_forward:.3g} nats per token, perplexity {quality.ppl_ratio:.3f} times the model's"]
    for row in record.recall:
        said.append(
            f"{row.task.replace('_', ' ')} {row.size}: {row.accuracy:.2f} (the model {row.teacher_accuracy:.2f})"
        )
    return "; ".join(said)


def _times(record: BenchRecord) -> str:
    """Of prefill and decoding, over softmax's in the same run."""
    said = []
    for phase in ("decode", "prefill"):
        rows = [row for row in record.measurements if row.level == "model" and row.phase == phase]
        of = {row.subject: row.median for row in rows}
        if (own := of.get("variant")) and (base := of.get("softmax")):
            said.append(f"{phase} {own / base:.2f} times softmax's time")
    return "".join(f"; {one}" for one in said)


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"
