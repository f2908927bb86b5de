"""The tables that are not about one question: results, what was run and on what, the study's own numbers."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from attnopt.records.corpus import CorpusManifest
from attnopt.report.context import Context
from attnopt.report.parts import formats
from attnopt.report.parts.tables import Column, Table, column, variant_column
from attnopt.report.published import STUDY


def summary(context: Context) -> list[Table]:
    """Quality at the length that the page opens with, where there is one; then on blocks as trained on."""
    blocks = on_blocks(context)
    return [blocks] if context.main is None else [at_main_length(context, context.main), blocks]


def at_main_length(context: Context, length: int) -> Table:
    """A row per variant, grouped by its state: quality and cost at one length."""
    near = context.quality_length(length)
    frame = context.at(length).reset_index(names="variant")
    frame = frame.assign(shown_group=context.groups(frame), length=length, quality_length=near)
    gap = frame["copy_gap"].dropna()
    at, cost = formats.length(near), formats.length(length)
    columns = [
        variant_column(context.name),
        Column(f"KL at {at}", lambda r: formats.plus_minus(r["kl"], r["kl_se"])),
        column("perplexity over the teacher’s", "ppl_ratio", formats.times),
        column("the same in the last bin", "last_ratio", formats.times),
        *([column(f"copying over {gap.iloc[0]:.0f}, over the teacher", "copy", formats.fixed)] if len(gap) else []),
        Column("KL of recalled answers", lambda r: formats.plus_minus(r["recall"], r["recall_se"])),
        column(f"state at {cost}", "state", formats.size),
        column("over softmax’s", "share", formats.times),
        column("decoding over softmax’s", "decode_ms_ratio", formats.times),
        column("prefill over softmax’s", "prefill_ms_ratio", formats.times),
    ]
    return Table(
        name="results",
        title=f"Quality and cost at {cost} tokens",
        columns=columns,
        frame=frame,
        command="dvc repro evaluate bench",
        group="shown_group",
        note=f"Quality on pieces of {at} tokens of the test split, means over seeds; ± is one standard error over "
        "documents and seeds. KL in nats per token; of recalled answers, mean over sizes, then over tasks. Controls "
        "are compared with, not ranked.",
    )


def on_blocks(context: Context) -> Table:
    """Quality on blocks as trained on, with what the training cost; no cost at any length."""
    frame = context.quality.drop(columns=["unfitted", "fitted", "end"]).reset_index(names="variant")
    columns = [
        variant_column(context.name),
        column("role", "role", kind="text"),
        Column("KL forward", lambda r: formats.plus_minus(r["kl"], r["kl_se"])),
        Column("spread over seeds", _spread),
        Column("95 % t interval", _t_interval),
        column("KL reverse", "kl_reverse", formats.number),
        column("JSD", "jsd", formats.number),
        column("top-1 agrees", "top1_agreement", formats.percent),
        column("perplexity over teacher's", "ppl_ratio", formats.times),
        column("per token", "ppl_token", formats.number),
        column("per word", "ppl_word", formats.number),
        column("per byte", "ppl_byte", formats.number),
        column("trained weights", "trained", formats.millions),
        column("tokens", "tokens", formats.millions),
        column("FLOPs", "flops", formats.flops),
        column("time", "seconds", formats.duration),
    ]
    return Table(
        name="blocks",
        title=f"Quality on blocks of {context.records.corpus.block} tokens, and cost of training",
        columns=columns,
        frame=pd.concat([_teacher_row(context), frame], ignore_index=True),
        command="dvc repro distill evaluate",
        note=f"The {context.params.split} split, {context.on_blocks}, means over seeds; ± is one standard error over "
        f"blocks and seeds; the t interval is over seeds alone, {_runs(context)}. "
        "KL and JSD in nats per token. The teacher stands beside itself; controls are compared with, not ranked.",
    )


def _teacher_row(context: Context) -> pd.DataFrame:
    """The teacher beside itself: perplexities as evaluated, everything else by definition."""
    own = {f"ppl_{unit}": context.quality[f"teacher_ppl_{unit}"].mean() for unit in ("token", "word", "byte")}
    same = {"kl": 0.0, "kl_reverse": 0.0, "jsd": 0.0, "top1_agreement": 1.0, "ppl_ratio": 1.0}
    row = {"variant": "the teacher", "role": "teacher", "seeds": 0} | same | own
    return pd.DataFrame([row] if len(context.quality) else [])


def _spread(row: Any) -> str:
    return formats.number(row["kl_spread"], 2) if row["seeds"] > 1 else "one run" if row["seeds"] else formats.MISSING


def _t_interval(row: Any) -> str:
    return formats.interval(row["kl_low"], row["kl_high"]) if row["seeds"] > 1 else formats.MISSING


def _runs(context: Context) -> str:
    """How many there were of each variant."""
    counts = context.quality["seeds"]
    few, many = (int(counts.min()), int(counts.max())) if len(counts) else (0, 0)
    return formats.plural(few, "run") + " each" if few == many else f"{few} to {many} runs each"


def everything(context: Context) -> list[Table]:
    """What was run, and on what."""
    return [_run(context), _variants(context), _environments(context), *_failures(context)]


def _run(context: Context) -> Table:
    run = context.records
    frame = pd.DataFrame([*_corpus(run.corpus), *_teacher(context), *_budget(run.runs)], columns=["what", "value"])
    if run.sampling:
        frame.loc[len(frame)] = [
            "sampling",
            ", ".join(f"{k.replace('_', ' ')} {_shown(v)}" for k, v in run.sampling.items()),
        ]
    return Table(
        name="run",
        title="Corpus, teacher and budget",
        columns=[column("what", "what", kind="text"), column("value", "value", kind="wide")],
        frame=frame,
        command="dvc repro",
    )


def _corpus(corpus: CorpusManifest) -> Iterable[tuple[str, str]]:
    source = ", ".join(filter(None, (corpus.source, corpus.name)))
    yield "corpus", f"{source}, blocks of {corpus.block} tokens"
    yield "digests", f"corpus {corpus.sha256[:16]}, tokenizer {corpus.tokenizer[:16]}"
    for name, split in corpus.splits.items():
        yield f"{name} split", ", ".join(f"{formats.count(size)} {what}" for what, size in split.model_dump().items())


def _teacher(context: Context) -> Iterable[tuple[str, str]]:
    teacher = context.records.teacher
    shape = [f"{key.replace('_', ' ')} {value}" for key, value in teacher.config.model_dump().items()]
    yield "teacher", ", ".join([context.teacher_name, *shape])
    yield "teacher fingerprint", teacher.fingerprint[:16]


def _budget(runs: pd.DataFrame) -> Iterable[tuple[str, str]]:
    """What all runs share in one line, what differs in a line each with the variants that have it."""
    shared = []
    for key in [key for key in runs if key.startswith("budget_")]:
        groups = runs["variant"].groupby(runs[key].map(_shown), sort=False).unique()
        name = key.removeprefix("budget_").replace("_", " ")
        if list(groups.index) == [formats.MISSING]:
            continue
        if len(groups) == 1:
            shared.append(f"{name} {groups.index[0]}")
        else:
            yield f"budget: {name}", "; ".join(f"{value} ({formats.listing(names)})" for value, names in groups.items())
    if shared:
        yield "budget", ", ".join(shared)


def _variants(context: Context) -> Table:
    frame = context.records.runs.drop_duplicates("variant")[["variant", "kind", "options", "layers", "parts"]]
    shown = {key: [_options(value) for value in frame[key]] for key in ("options", "layers")}
    told = [_parts(parts) or options for parts, options in zip(frame["parts"], shown["options"], strict=True)]
    frame = frame.drop(columns="parts").assign(**shown).assign(options=told)
    return Table(
        name="variants",
        title="Variants",
        columns=[
            variant_column(context.name),
            column("kind", "kind", kind="text"),
            column("options", "options", kind="wide"),
            column("layers replaced", "layers", kind="text"),
        ],
        frame=frame,
        command="dvc repro distill",
    )


def _options(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items()) or "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else "all"


def _parts(parts: Any) -> str:
    """The layers of a mixed student, by variant; empty of any other."""
    if not isinstance(parts, list):
        return ""
    return "; ".join(f"{p['variant']} in {', '.join(map(str, p['layers']))} ({_options(p['options'])})" for p in parts)


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
        columns=[column(str(key), str(key), _shown, "text") for key in frame],
        frame=frame,
        command="dvc repro",
    )


def _failures(context: Context) -> list[Table]:
    """Measurements that ran out of memory or time: data points too."""
    keys = ["variant", "subject", "level", "phase", "length", "batch", "outcome"]
    frame = context.records.bench.loc[context.records.bench["outcome"].fillna("ok") != "ok", keys]
    table = Table(
        name="failures",
        title="What did not fit",
        columns=[variant_column(), *(column(key, key, _shown, "text") for key in keys[1:])],
        frame=frame,
        command="dvc repro bench",
    )
    return [table] if len(frame) else []


def _shown(value: Any) -> str:
    if value is None or value != value:
        return formats.MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " + ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def study(context: Context) -> Table:
    """One row per variant of the study and per variant here of that kind."""
    rows = []
    for reported in STUDY:
        ours = [str(v) for v in context.quality.index[context.quality["kind"] == reported.kind]]
        rows += [vars(reported) | _ours(context, v) for v in ours or [""]]
    return Table(
        name="study",
        title="Reported there, measured here",
        columns=[
            column("study", "study", kind="text"),
            column("its training loss", "loss", kind="wide"),
            column("its text", "text", kind="text"),
            Column("here", lambda r: r["variant"] or "not run", "text"),
            Column(
                f"held-out KL, blocks of {context.records.corpus.block}",
                lambda r: formats.plus_minus(r["kl"], r["kl_se"]),
            ),
            column("samples' perplexity", "sample_ppl", formats.number),
            column("why they differ", "differs", kind="wide"),
        ],
        frame=pd.DataFrame(rows),
        command="dvc repro",
        note="The study distilled GPT-2 small (124M parameters) on WikiText-2, one run per variant, and reported "
        "training losses that are on three different scales. Here: KL(teacher ‖ student) per token on held-out text.",
    )


def _ours(context: Context, variant: str) -> dict[str, Any]:
    if not variant:
        return {"variant": "", "kl": None, "kl_se": None, "sample_ppl": None}
    kl = context.kl(variant)
    scores = np.log(context.records.samples.loc[context.records.samples["variant"] == variant, "teacher_ppl"])
    return {"variant": variant, "kl": kl.value, "kl_se": kl.error, "sample_ppl": float(np.exp(scores.mean()))}
