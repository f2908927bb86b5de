"""What the page says of costs at lengths that nobody measured: what they rest on, and where that is known to fail."""

from collections.abc import Iterable

from attnopt.report.data import extrapolation, summary
from attnopt.report.data.extrapolation import Basis
from attnopt.report.data.read import Records
from attnopt.report.parts import formats


def said_basis(basis: Basis) -> str:
    """What an extrapolated cost rests on, in words: extrapolated from 1 024 and 4 096."""
    return f"extrapolated from {formats.listing(formats.count(n) for n in basis.lengths)}"


def limits(records: Records, reached: Iterable[int]) -> list[str]:
    """What an extrapolation assumes, and where that is known to fail."""
    found = extrapolation.basis(records)
    assert found is not None
    shown = formats.listing(map(formats.length, reached))
    out = [
        f"At {shown} tokens every cost is {said_basis(found)}: times as a + b n for a decoded token and a n + b n² for "
        "a prefill, a and b not negative, through the longest length measured; bytes on the line through the two "
        "longest. The intervals are of the samples' noise, not of these assumptions.",
        "A byte is taken to cost the same at every length, in a cache or not: in benchmarks/mechanisms.json 16 384 "
        "tokens take half to 1.6 times what 1 024 and 4 096 predict, softmax's decoding 1.4 times.",
    ]
    return out + _steeper(records, found)


def _steeper(records: Records, found: Basis) -> list[str]:
    """Says so where softmax's decoding already grows faster than its work between the lengths measured."""
    rows = summary.bench_rows(records, found.level, "decode").groupby("length")["baseline"].median().dropna()
    if len(rows) < 2:
        return []
    short, long = (float(n) for n in rows.index[-2:])
    grown = float(rows[long] / rows[short])
    if grown <= 1.1 * long / short:
        return []
    return [
        f"In this run softmax's decoding takes {formats.number(grown)} times as long at {formats.count(long)} tokens "
        f"as at {formats.count(short)}, more than its work grows: its extrapolated time is a lower bound."
    ]
