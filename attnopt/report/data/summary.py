"""Records condensed to one row per variant: quality with its uncertainty, and cost at a length."""

import numpy as np
import pandas as pd

from attnopt.report.data.read import Records
from attnopt.statistics import student_t

PERPLEXITIES = tuple(f"{whose}ppl_{unit}" for whose in ("", "teacher_") for unit in ("token", "word", "byte"))
QUALITY = ("kl_forward", "kl_forward_se", "kl_reverse", "jsd", "top1_agreement", "ppl_ratio", *PERPLEXITIES)
TRAINING = {
    "trained_parameters": "trained",
    "budget_tokens": "tokens",
    "budget_steps": "steps",
    "budget_train": "train",
    "seconds": "seconds",
    "flops": "flops",
    "kl_start_unfitted": "unfitted",
    "kl_start": "fitted",
    "kl_end": "end",
}
BASELINE = {
    "median": "baseline",
    "q1": "baseline_q1",
    "q3": "baseline_q3",
    "samples": "baseline_samples",
    "state_bytes": "baseline_state",
    "peak_mib": "baseline_peak",
}


def quality(records: Records, split: str) -> pd.DataFrame:
    """One row per variant, indexed by it: those that compete, best KL first, then the others.

    Columns: the means of every measure and of the training; role, kind, seeds (how many); kl and its errors.
    kl is the mean over seeds; kl_spread its standard deviation over seeds (NaN with one); kl_se its standard error
    from both sources, evaluation blocks (the same for all seeds, so not divided) and seeds:
    sqrt(se_blocks^2 + spread^2 / seeds). kl_low, kl_high: the 95 % t interval of the mean over seeds.
    """
    groups = records.quality[records.quality["split"] == split].groupby("variant", sort=False)
    out = groups[list(QUALITY)].mean().rename(columns={"kl_forward": "kl", "kl_forward_se": "kl_se_blocks"})
    out["seeds"] = groups["seed"].nunique()
    out["kl_spread"] = groups["kl_forward"].std(ddof=1)
    half = student_t(out["seeds"] - 1) * out["kl_spread"] / np.sqrt(out["seeds"])
    out["kl_low"], out["kl_high"] = groups["kl_forward"].mean() - half, groups["kl_forward"].mean() + half
    seeds_part = (out["kl_spread"] ** 2 / out["seeds"]).fillna(0)
    out["kl_se"] = np.sqrt(out["kl_se_blocks"].fillna(0) ** 2 + seeds_part)
    out["role"] = [records.role(str(v)) for v in out.index]
    out["kind"] = [records.variants[str(v)] for v in out.index]
    how = {column: "first" if column == "budget_train" else "mean" for column in TRAINING}
    training = records.runs.groupby("variant", sort=False).agg(how).rename(columns=TRAINING)
    out = out.join(training).assign(last=out["role"] != "candidate")
    return out.sort_values(["last", "kl"]).drop(columns="last")


def levels(records: Records) -> list[str]:
    """The levels that were measured, whole model first."""
    return [level for level in ("model", "operation") if (records.bench["level"] == level).any()]


def bench_rows(records: Records, level: str, phase: str, batch: int | None = None) -> pd.DataFrame:
    """The variants' own measurements that came out, of a batch or else the smallest, with softmax's row beside each.

    Columns: those of the record, `baseline...` for softmax's (see BASELINE), and `ratio`, the medians' quotient.
    """
    table = records.bench
    table = table[(table["level"] == level) & (table["phase"] == phase) & (table["outcome"] == "ok")]
    table = table[table["batch"] == (table["batch"].min() if batch is None else batch)].sort_values(
        "length", kind="stable"
    )
    own, softmax = (
        table[table["subject"] == subject].drop_duplicates(["variant", "length"]) for subject in ("variant", "softmax")
    )
    beside = softmax[["variant", "length", *BASELINE]].rename(columns=BASELINE)
    merged = own.merge(beside, on=["variant", "length"], how="left")
    return merged.assign(ratio=merged["median"] / merged["baseline"])


def measured_lengths(records: Records, level: str) -> list[int]:
    """Those at which decoding was measured, or else prefill."""
    rows = next((r for p in ("decode", "prefill") if len(r := bench_rows(records, level, p))), None)
    return [] if rows is None else sorted(int(n) for n in rows["length"].unique())


def highlighted(records: Records, wanted: list[int]) -> list[int]:
    """The lengths to choose for: those wanted that were measured, or else the longest of each level, rising."""
    every = [measured_lengths(records, level) for level in levels(records)]
    chosen = {n for n in wanted if any(n in lengths for lengths in every)}
    return sorted(chosen or {max(lengths) for lengths in every if lengths})


def cost_at(records: Records, length: int) -> pd.DataFrame:
    """One row per variant at a length, in the order of params.yaml; an empty cell for what was not measured.

    Columns: prefill_ms and decode_ms with .._q1, .._q3, .._baseline (softmax's) and .._ratio; state (bytes when
    decoding) with .._baseline and .._ratio; peak_mib of the prefill; level, the whole model where it was measured.
    """
    level = next((lv for lv in levels(records) if length in measured_lengths(records, lv)), "model")
    parts = []
    for name, phase in (("prefill_ms", "prefill"), ("decode_ms", "decode")):
        rows = bench_rows(records, level, phase)
        rows = rows[rows["length"] == length].set_index("variant")
        times = {"": "median", "_q1": "q1", "_q3": "q3", "_baseline": "baseline", "_ratio": "ratio"}
        part = pd.DataFrame({name + suffix: rows[column] for suffix, column in times.items()})
        if phase == "decode":
            part["state"], part["state_baseline"] = rows["state_bytes"], rows["baseline_state"]
            part["state_ratio"] = part["state"] / part["state_baseline"]
        else:
            part["peak_mib"] = rows["peak_mib"]
        parts.append(part)
    out = parts[0].join(parts[1], how="outer").assign(level=level)
    return out.reindex([v for v in records.variants if v in out.index])


def coherence(records: Records, split: str) -> pd.DataFrame:
    """One row per variant and seed: KL beside what its samples score. Perplexities are geometric means over texts."""
    return _scored(records, records.quality[records.quality["split"] == split], records.samples, ["variant", "seed"])


def coherence_on_the_way(records: Records, split: str) -> pd.DataFrame:
    """The same of checkpoints, one row per variant, seed and step."""
    evaluated = records.checkpoints[records.checkpoints["split"] == split]
    return _scored(records, evaluated, records.checkpoint_samples, ["variant", "seed", "step"])


def _scored(records: Records, quality: pd.DataFrame, samples: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    table = samples.assign(
        sample_ppl=np.log(samples["teacher_ppl"]), teacher_ppl_own=np.log(samples["teacher_text_ppl"])
    )
    measures = ["sample_ppl", "teacher_ppl_own", "repetition", "distinct_1", "distinct_2"]
    means = table.groupby(keys, sort=False)[measures].mean()
    means[measures[:2]] = np.exp(means[measures[:2]])
    evaluated = quality.set_index(keys)["kl_forward"].rename("kl")
    joined = means.join(evaluated, how="inner").reset_index()
    return joined.assign(role=[records.role(v) for v in joined["variant"]])


def pooled(table: pd.DataFrame, keys: list[str], measures: dict[str, str]) -> pd.DataFrame:
    """Means over seeds, a row for each of `keys`, with standard errors from blocks and seeds, as `quality` has them.

    Args:
        measures: column -> the column of its standard error over blocks.
    """
    groups = table.groupby(keys, sort=False)
    out = groups[[*measures, *measures.values()]].mean()
    for value, error in measures.items():
        seeds_part = groups[value].var(ddof=1).fillna(0) / groups.size()
        out[error] = np.sqrt(out[error] ** 2 + seeds_part)
    return out.reset_index()
