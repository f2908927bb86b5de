"""The tables that are not about one question: results, what was run and on what, the study's own numbers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from attnopt.report.context import Context
from attnopt.report.parts import formats as words
from attnopt.report.parts.tables import Cell, Table, column


def results(context: Context) -> Table:
    frame = context.quality.drop(columns=["unfitted", "fitted", "end"]).reset_index(names="variant")
    columns: dict[str, Cell] = {
        "variant": column("variant", context.name),
        "role": column("role"),
        "KL forward": lambda r: words.plus_minus(r["kl"], r["kl_se"]),
        "spread over seeds": _spread,
        "95 % t interval": lambda r: words.interval(r["kl_low"], r["kl_high"]) if r["seeds"] > 1 else words.MISSING,
        "KL reverse": column("kl_reverse", words.number),
        "JSD": column("jsd", words.number),
        "top-1 agrees": column("top1_agreement", words.percent),
        "perplexity over teacher's": column("ppl_ratio", words.times),
        "per token": column("ppl_token", words.number),
        "per word": column("ppl_word", words.number),
        "per byte": column("ppl_byte", words.number),
        "trained weights": column("trained", words.millions),
        "tokens": column("tokens", words.millions),
        "FLOPs": column("flops", words.flops),
        "time": column("seconds", words.duration),
    }
    return Table(
        name="results",
        title="Quality and cost of training",
        columns=columns,
        frame=pd.concat([_teacher_row(context), frame], ignore_index=True),
        command="dvc repro distill evaluate",
        note=f"The {context.params.split} split, means over seeds; ± is one standard error over blocks "
        f"and seeds; the t interval is over seeds alone, {_runs(context)}. "
        "KL and JSD in nats per token. The teacher stands beside itself; controls are compared with, not ranked.",
        text={"variant", "role"},
    )


def _teacher_row(context: Context) -> pd.DataFrame:
    """The teacher beside itself: perplexities as evaluated, everything else by definition."""
    own = {f"ppl_{unit}": context.quality[f"teacher_ppl_{unit}"].mean() for unit in ("token", "word", "byte")}
    same = {"kl": 0.0, "kl_reverse": 0.0, "jsd": 0.0, "top1_agreement": 1.0, "ppl_ratio": 1.0}
    row = {"variant": "the teacher", "role": "teacher", "seeds": 0} | same | own
    return pd.DataFrame([row] if len(context.quality) else [])


def _spread(row: Any) -> str:
    return words.number(row["kl_spread"], 2) if row["seeds"] > 1 else "one run" if row["seeds"] else words.MISSING


def _runs(context: Context) -> str:
    """How many there were of each variant."""
    counts = context.quality["seeds"]
    few, many = (int(counts.min()), int(counts.max())) if len(counts) else (0, 0)
    return words.plural(few, "run") + " each" if few == many else f"{few} to {many} runs each"


def everything(context: Context) -> list[Table]:
    """What was run, and on what."""
    return [_run(context), _variants(context), _environments(context), *_failures(context)]


def _run(context: Context) -> Table:
    run = context.records
    frame = pd.DataFrame([*_corpus(run.corpus), *_teacher(run.teacher), *_budget(run.runs)], columns=["what", "value"])
    if run.sampling:
        frame.loc[len(frame)] = [
            "sampling",
            ", ".join(f"{k.replace('_', ' ')} {_shown(v)}" for k, v in run.sampling.items()),
        ]
    return Table(
        name="run",
        title="Corpus, teacher and budget",
        columns={"what": column("what"), "value": column("value")},
        frame=frame,
        command="dvc repro",
        text={"what"},
        wide={"value"},
    )


def _corpus(corpus: dict[str, Any]) -> Iterable[tuple[str, str]]:
    if corpus:
        source = ", ".join(str(corpus[key]) for key in ("source", "name") if corpus.get(key))
        yield "corpus", f"{source}, blocks of {corpus.get('block')} tokens"
        yield "digests", f"corpus {str(corpus.get('sha256'))[:16]}, tokenizer {str(corpus.get('tokenizer'))[:16]}"
    for name, split in (corpus.get("splits") or {}).items():
        sizes = [
            f"{words.count(split[k])} {k}" for k in ("documents", "words", "bytes", "tokens", "blocks") if k in split
        ]
        yield f"{name} split", ", ".join(sizes)


def _teacher(teacher: dict[str, Any]) -> Iterable[tuple[str, str]]:
    if teacher:
        shape = [f"{key.replace('_', ' ')} {value}" for key, value in (teacher.get("config") or {}).items()]
        yield "teacher", ", ".join([teacher_name(teacher), *shape])
        yield "teacher fingerprint", str(teacher.get("fingerprint"))[:16]


def teacher_name(teacher: dict[str, Any]) -> str:
    """What and from where: bundled, a hub's id, a path."""
    source = teacher.get("source") or {}
    if isinstance(source, str):
        source = {"source": source}
    return " ".join(str(source[key]) for key in ("source", "id", "path", "revision") if source.get(key))


def _budget(runs: pd.DataFrame) -> Iterable[tuple[str, str]]:
    """What all runs share in one line, what differs in a line each with the variants that have it."""
    shared = []
    for key in [key for key in runs if key.startswith("budget_")]:
        groups = runs["variant"].groupby(runs[key].map(_shown), sort=False).unique()
        name = key.removeprefix("budget_").replace("_", " ")
        if list(groups.index) == [words.MISSING]:
            continue
        if len(groups) == 1:
            shared.append(f"{name} {groups.index[0]}")
        else:
            yield f"budget: {name}", "; ".join(f"{value} ({words.listing(names)})" for value, names in groups.items())
    if shared:
        yield "budget", ", ".join(shared)


def _variants(context: Context) -> Table:
    frame = context.records.runs.drop_duplicates("variant")[["variant", "kind", "options", "layers"]]
    frame = frame.assign(**{key: [_options(value) for value in frame[key]] for key in ("options", "layers")})
    return Table(
        name="variants",
        title="Variants",
        columns={
            "variant": column("variant", context.name),
            "kind": column("kind"),
            "options": column("options"),
            "layers replaced": column("layers"),
        },
        frame=frame,
        command="dvc repro distill",
        text={"variant", "kind", "layers replaced"},
        wide={"options"},
    )


def _options(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items()) or "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else "all"


def _environments(context: Context) -> Table:
    """Every distinct machine and set of versions, with the stages that ran on it."""
    table = context.records.environments
    keys = [key for key in table if key not in ("stage", "variant", "load_before")]
    rows = []
    for _, group in table.groupby(keys, sort=False, dropna=False) if keys else []:
        stages = ", ".join(dict.fromkeys(group["stage"]))
        rows.append({"stages": stages, "records": len(group)} | group.iloc[0][keys].to_dict())
    frame = pd.DataFrame(rows)
    return Table(
        name="environments",
        title="Machines and versions",
        columns={str(key): column(str(key), _shown) for key in frame},
        frame=frame,
        command="dvc repro",
        text=set(frame.columns),
    )


def _failures(context: Context) -> list[Table]:
    """Measurements that ran out of memory or time: data points too."""
    keys = ["variant", "subject", "level", "phase", "length", "batch", "outcome"]
    frame = context.records.bench.loc[context.records.bench["outcome"].fillna("ok") != "ok", keys]
    table = Table(
        name="failures",
        title="What did not fit",
        columns={key: column(key, _shown) for key in keys},
        frame=frame,
        command="dvc repro bench",
        text=set(keys),
    )
    return [table] if len(frame) else []


def _shown(value: Any) -> str:
    if value is None or value != value:
        return words.MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " + ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Reported:
    """What the study said of one variant, and why it differs from what is measured here."""

    study: str
    kind: str
    loss: str
    text: str
    differs: str


STUDY = (
    Reported(
        "masks",
        "masks",
        "2.6113 → 0.5875 in 10 epochs (others: 2.1470 → 0.3881 in 100; 1.4750 → 0.5875)",
        "decent",
        "Its loss was KL plus cross-entropy on the training text. Here: KL alone, held out.",
    ),
    Reported(
        "Performer",
        "performer",
        "2.4290 → 0.1872 in 45 epochs (earlier: 3.1287 → 2.2994 in 50, with NaN)",
        "poor",
        "It summed over the whole sequence and so saw the tokens it predicts, with features that are not the softmax "
        "kernel's. Here: causal, positive orthogonal features.",
    ),
    Reported(
        "Performer",
        "performer_bidirectional",
        "the same runs",
        "poor",
        "The study's non-causal form, kept as a negative control: it shows what a leak does to KL.",
    ),
    Reported(
        "NSA",
        "nsa",
        "713.74 → 33.46 in 50 epochs (earlier: 331.67 → 175.68 in 5)",
        "incoherent",
        "Its KL was a sum over the batch and its targets shifted by a position; 12 blocks shared one attention module, "
        "MLPs and norms started afresh. Here: a mean per token, aligned, the teacher's own weights.",
    ),
)


def study(context: Context) -> Table:
    """One row per variant of the study and per variant here of that kind."""
    rows = []
    for reported in STUDY:
        ours = [str(v) for v in context.quality.index[context.quality["kind"] == reported.kind]]
        rows += [vars(reported) | _ours(context, v) for v in ours or [""]]
    return Table(
        name="study",
        title="Reported there, measured here",
        columns={
            "study": column("study"),
            "its training loss": column("loss"),
            "its text": column("text"),
            "here": lambda r: r["variant"] or "not run",
            "held-out KL": lambda r: words.plus_minus(r["kl"], r["kl_se"]),
            "samples' perplexity": column("sample_ppl", words.number),
            "why they differ": column("differs"),
        },
        frame=pd.DataFrame(rows),
        command="dvc repro",
        note="The study distilled GPT-2 small (124M parameters) on WikiText-2, one run per variant, and reported "
        "training losses that are on three different scales. Here: KL(teacher ‖ student) per token on held-out text.",
        text={"study", "its text", "here"},
        wide={"its training loss", "why they differ"},
    )


def _ours(context: Context, variant: str) -> dict[str, Any]:
    if not variant:
        return {"variant": "", "kl": None, "kl_se": None, "sample_ppl": None}
    kl, se = context.kl(variant)
    scores = np.log(context.records.samples.loc[context.records.samples["variant"] == variant, "teacher_ppl"])
    return {"variant": variant, "kl": kl, "kl_se": se, "sample_ppl": float(np.exp(scores.mean()))}
