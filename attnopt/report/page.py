"""The report itself: one page, its Markdown twin with PNGs, the tables as CSV, and the metrics that DVC shows."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attnopt.core.files import write_json, written_aside
from attnopt.core.paths import RESULTS
from attnopt.report import overview, questions
from attnopt.report.context import Answer, Context
from attnopt.report.data import at_length, summary
from attnopt.report.data.files import seeds_of
from attnopt.report.data.read import read_records, record_warnings
from attnopt.report.data.tables import SCORES, TEXTS
from attnopt.report.params import ReportParams
from attnopt.report.parts import formats
from attnopt.report.parts.figures import Figure, plain
from attnopt.report.parts.tables import Table, csv
from attnopt.report.render import fill, png

METRICS = {
    "kl": "kl",
    "kl_se": "kl_se",
    "kl_spread": "kl_spread",
    "kl_reverse": "kl_reverse",
    "jsd": "jsd",
    "top1_agreement": "top1",
    "ppl_ratio": "ppl_ratio",
    "ppl_token": "ppl_token",
    "trained": "trained_parameters",
}
AT_LENGTH = {"kl": "kl", "ppl_ratio": "ppl_ratio", "last_ratio": "ppl_ratio_last", "share": "state_share"}
COSTS = ["decode_ms", "decode_ms_ratio", "prefill_ms", "prefill_ms_ratio", "state"]


@dataclass
class Report:
    """Everything that a rendering needs."""

    context: Context
    answers: list[Answer]
    summary: list[Table]
    study: Table
    evidence: list[Table]
    warnings: list[str]

    @classmethod
    def of(cls, context: Context) -> "Report":
        return cls(
            context=context,
            answers=questions.answers(context),
            summary=overview.summary(context),
            study=overview.study(context),
            evidence=overview.everything(context),
            warnings=record_warnings(context.records),
        )

    @property
    def figures(self) -> list[Figure]:
        pictures = [answer.picture for answer in self.answers if answer.picture]
        return pictures + [figure for answer in self.answers for figure in answer.figures]

    @property
    def tables(self) -> list[Table]:
        asked = [table for answer in self.answers for table in answer.tables]
        return [*self.summary, *asked, self.study, *self.evidence]


def write_report(
    root: Path,
    variants: Mapping[str, str],
    params: ReportParams,
    out: Path,
    controls: Sequence[str] | None = None,
) -> list[str]:
    """Read a run's records and write its report: index.html, report.md, figures/, data/ and metrics.json.

        write_report(Path("."), {"softmax": "softmax", "performer": "performer"}, ReportParams(), Path("reports"))

    Args:
        root: the project's folder, whose records are read and left as they are.
        variants: name -> kind, as params.yaml lists them; results of others are not looked at.
        params: the section `report` of params.yaml.
        out: the folder to write into; made where it is missing.
        controls: variants that do not compete; None: those of the kinds softmax, none and topk.

    Returns: the warnings that the page carries.

    Raises: UserError where there is no record, or one that is damaged, of another format or without a key; what `out`
        held before then stays.
    """
    report = Report.of(Context.of(read_records(root, variants, params, controls), params))
    with written_aside(out / "figures") as folder:
        folder.mkdir()
        drawn = png.draw_pngs(report.figures, folder)
    with written_aside(out / "data") as folder:
        folder.mkdir()
        for name, text in downloads(report).items():
            (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    for name, text in {"index.html": html(report), "report.md": markdown(report, drawn)}.items():
        with written_aside(out / name) as aside:
            aside.write_text(text, encoding="utf-8")
    write_json(out / "metrics.json", metrics(report.context))
    return report.warnings


def write_histories(root: Path, variants: Iterable[str], out: Path) -> None:
    """Every run's history under a name of its own, NAME-SEED.csv in the folder `out`, for `dvc plots`."""
    with written_aside(out) as aside:
        aside.mkdir()
        for name in variants:
            for seed in seeds_of(root, name):
                history = root / RESULTS / "distill" / name / str(seed) / "history.csv"
                if history.is_file():
                    shutil.copy(history, aside / f"{name}-{seed}.csv")


def downloads(report: Report) -> dict[str, str]:
    """Every table and every figure's numbers as CSV."""
    files = {table.name: csv(table.frame) for table in report.tables}
    files |= {f"figure_{figure.name}": csv(figure.frame) for figure in report.figures}
    return files | {"samples": csv(_all_samples(report.context))}


def metrics(context: Context) -> dict[str, dict[str, float]]:
    """Variant -> numbers, for `dvc metrics show`: quality on blocks; quality at each length, named by it; what its
    samples score; and costs at `cost_length`, the longest measured that quality speaks for, or else the longest."""
    scores = summary.coherence(context.records, context.params.split).groupby("variant")[["sample_ppl"]].mean()
    parts = [context.quality[list(METRICS)].rename(columns=METRICS), scores]
    parts += [_at_length(context, length) for length in sorted(context.records.lengths["length"].unique())]
    parts += [_costs(context, length) for length in _cost_length(context)]
    found: dict[str, dict[str, float]] = {v: {} for v in context.records.variants}
    for part in parts:
        for variant, row in part.iterrows():
            found[str(variant)] |= {str(key): value for key, value in plain(row.to_dict()).items() if value is not None}
    return {variant: values for variant, values in found.items() if values}


def _cost_length(context: Context) -> list[int]:
    """One of those measured, or none where there is none."""
    return ([n for n in context.measured if n in context.chosen] or context.measured)[-1:]


def _costs(context: Context, length: int) -> pd.DataFrame:
    return context.costs[length][COSTS].assign(cost_length=length)


def _at_length(context: Context, length: int) -> pd.DataFrame:
    """kl_1024, ppl_ratio_last_1024 and so on; the retention of copying at the longest length alone."""
    table = at_length.quality(context.records, length)
    named = table[list(AT_LENGTH)].rename(columns={key: f"{name}_{length}" for key, name in AT_LENGTH.items()})
    return named.assign(copy_retention=table["copy"], recall_kl=table["recall"])


def html(report: Report) -> str:
    """The self-contained page."""
    samples = _samples(report.context)
    return fill.fill_html(
        "index.html.j2",
        report.figures,
        downloads(report),
        report.context.looks,
        report=report,
        title=report.context.params.title,
        facts=facts(report.context),
        samples=fill.script_json(samples),
        top_kl=top_kl(samples, report.context.records.candidates),
    )


def markdown(report: Report, drawn: Mapping[str, list[str]]) -> str:
    """The same for a git host.

    Args:
        drawn: the files that each figure was drawn to.
    """
    return fill.fill_markdown(
        "report.md.j2",
        report=report,
        title=report.context.params.title,
        facts=facts(report.context),
        drawn=drawn,
        data="data",
        images="figures",
        samples=_first(_samples(report.context)),
    )


def facts(context: Context) -> list[str]:
    """The run in one line."""
    run = context.records
    seeds = sorted({int(s) for s in [*run.runs["seed"], *run.quality["seed"]]})
    return [
        f"teacher {context.teacher_name} ({formats.millions(run.teacher.config.parameters)} parameters)",
        f"corpus {run.corpus.source}",
        f"{formats.plural(len(run.variants), 'variant')}, seeds {', '.join(map(str, seeds)) or 'none'}",
        formats.listing(run.environments["cpu"].unique()),
        f"attnopt {metadata.version('attnopt')}",
    ]


def _samples(context: Context) -> list[dict[str, Any]]:
    shown = context.records.samples[["variant", "seed", *TEXTS, *SCORES]].to_dict("records")
    for row in shown:
        pieces = coloured(row["text"], row.pop("tokens"), row.pop("token_kl"))
        row |= {"label": context.name(row["variant"]), "leaks": row["variant"] in context.records.leaks}
        row |= {"pieces": [piece for piece, _ in pieces], "kl": [round(kl, 2) for _, kl in pieces]}
    return plain(shown)


def coloured(text: str, tokens: Sequence[str], kl: Sequence[float]) -> list[tuple[str, float]]:
    """Pieces of a sample's text with the KL at each; empty where the tokens are not those of this text.

    An empty token is the beginning of the next one's character, which carries the larger KL of the two.
    """
    if len(tokens) != len(kl) or "".join(tokens) != text:
        return []
    pieces, begun = [], 0.0
    for token, value in zip(tokens, kl, strict=True):
        begun = max(begun, value)
        if token:
            pieces.append((token, begun))
            begun = 0.0
    return pieces


def top_kl(samples: list[dict[str, Any]], candidates: Sequence[str]) -> float | None:
    """Where the colours of the samples end: the 95th percentile of KL over the tokens of the variants that compete."""
    ranked = [kl for sample in samples if sample["variant"] in candidates for kl in sample["kl"]]
    every = ranked or [kl for sample in samples for kl in sample["kl"]]
    return max(round(float(np.quantile(every, 0.95)), 2), 0.01) if every else None


def _all_samples(context: Context) -> pd.DataFrame:
    """Texts of the final students, then of the checkpoints, with the step at which each wrote."""
    final, kept = context.records.samples.assign(step="end"), context.records.checkpoint_samples
    rows = pd.concat([final, kept.astype({"step": int})], ignore_index=True) if len(kept) else final
    return _tokens_as_json(rows)


def _tokens_as_json(samples: pd.DataFrame) -> pd.DataFrame:
    lists = {c: [fill.compact(plain(v)) for v in samples[c]] for c in ("tokens", "token_kl")}
    return samples.assign(**lists)


def _first(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One sample per variant, all of the same prompt."""
    return list({s["variant"]: s for s in reversed(samples) if s["prompt"] == samples[0]["prompt"]}.values())[::-1]
