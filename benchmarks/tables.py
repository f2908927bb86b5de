"""The Markdown tables of a results file of benchmarks/mechanisms.py."""

import statistics
from collections.abc import Sequence
from typing import Any

from attnopt.statistics import fit_exponent

TITLES = {"prefill": "Forward", "train": "Forward and backward", "decode": "One decoding step"}
PEERS = [("nsa", "nsa package"), ("performer", "performer-pytorch")]
Rows = dict[tuple[str, str, int], dict[str, Any]]


def markdown(results: dict[str, Any], base: str, long: int = 2048) -> str:
    """Every table; `long` is where exponents begin."""
    rows: Rows = {(r["name"], r["phase"], r["length"]): r for r in results["rows"]}
    about = results["environment"]
    head = f"{about['cpu']}, {about['threads']} threads, {about['device']}, {about['dtype']}, torch {about['torch']}"
    parts = [
        f"12 heads of 64, batch 1. {head}. In brackets: times faster than {base} in the same rounds; ~ marks noise."
    ]
    for phase, title in TITLES.items():
        if any(key[1] == phase for key in rows):
            parts.append(f"### {title}, ms\n\n{_times(rows, phase)}")
    parts += [f"### Growth\n\n{_growth(rows, long)}", f"### Against the packages\n\n{_peers(rows)}"]
    return "\n\n".join(parts)


def _times(rows: Rows, phase: str) -> str:
    lengths = sorted({n for _, p, n in rows if p == phase})
    names = list(dict.fromkeys(name for name, p, _ in rows if p == phase))
    body = [[name, *(_time(rows.get((name, phase, n))) for n in lengths)] for name in names]
    return _table(["", *map(str, lengths)], body)


def _time(row: dict[str, Any] | None) -> str:
    if row is None or not row.get("median"):
        return row.get("outcome", "-") if row else "-"
    speedup = f" ({row['speedup']:.2g}x)" if "speedup" in row else ""
    flags = (" " + row["outcome"] if row["outcome"] != "ok" else "") + (" ~" if row["noisy"] else "")
    return f"{row['median']:.3g}{speedup}{flags}"


def _growth(rows: Rows, long: int) -> str:
    """Exponents of time and memory over the long lengths, and decoding at the longest against the shortest."""
    names = list(dict.fromkeys(name for name, _, _ in rows))
    columns = [("prefill", "median"), ("train", "median"), ("prefill", "peak_mib"), ("train", "peak_mib")]
    longest = max(n for _, _, n in rows)
    body = []
    for name in names:
        exponents = [_exponent(rows, name, phase, value, long) for phase, value in columns]
        peaks = [_number(rows.get((name, phase, longest), {}).get("peak_mib")) for phase in ("prefill", "train")]
        body.append([name, *exponents, *peaks, _decoding(rows, name)])
    heads = ["", "time fwd", "time fwd+bwd", "memory fwd", "memory fwd+bwd"]
    return _table([*heads, f"MiB fwd {longest}", f"MiB fwd+bwd {longest}", "decoding, longest / shortest"], body)


def _exponent(rows: Rows, name: str, phase: str, value: str, long: int) -> str:
    points = [(n, r[value]) for (k, p, n), r in rows.items() if (k, p) == (name, phase) and n >= long and r.get(value)]
    if len(points) < 2:
        return "-"
    lengths, costs = zip(*sorted(points), strict=True)
    if min(costs) <= 0:
        return "-"
    fit = fit_exponent(lengths, costs)
    return f"{fit.exponent:.2f}" + (f" [{fit.low:.2f}, {fit.high:.2f}]" if len(points) > 2 else "")


def _decoding(rows: Rows, name: str) -> str:
    lengths = sorted(n for k, p, n in rows if (k, p) == (name, "decode"))
    if len(lengths) < 2:
        return "-"
    ratio = _ratio(rows[name, "decode", lengths[-1]], rows[name, "decode", lengths[0]])
    return "-" if ratio is None else f"{ratio:.2f} ({lengths[-1]} / {lengths[0]})"


def _peers(rows: Rows) -> str:
    body = []
    for own, peer in PEERS:
        for key in [key for key in rows if key[0] == peer]:
            mine, theirs = rows.get((own, *key[1:])), rows[key]
            ratio = _ratio(theirs, mine) if mine else None
            ours, others = (r.get("peak_mib") for r in (mine or {}, theirs))
            memory = f"{others / ours:.1f}x" if ours and others else "-"
            faster = "-" if ratio is None else f"{ratio:.1f}x"
            body.append([own, peer, TITLES[key[1]].lower(), str(key[2]), _time(theirs), faster, memory])
    return _table(["", "package", "", "tokens", "package, ms", "faster", "less memory"], body)


def _ratio(a: dict[str, Any], b: dict[str, Any]) -> float | None:
    """Median of a / b over the rounds that they share; None where they are not of one run."""
    if not a.get("samples") or not b.get("samples") or a["run"] != b["run"]:
        return None
    return statistics.median(x / y for x, y in zip(a["samples"], b["samples"], strict=False))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
