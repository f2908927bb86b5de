"""Everything that wants a GPU, in units that are kept as they are done: a later call goes on where this one ends.

    python benchmarks/gpu.py                       # nine minutes of what is left to do, then the tables
    python benchmarks/gpu.py --only parity operations --minutes 4
    python benchmarks/gpu.py --show                # the tables of what is done
    python benchmarks/gpu.py --toy --device cpu    # all of it, small, to see that it works

Pieces: parity of every kernel with the eager path; operations, a mechanism alone against SDPA to 131072 tokens; model,
the whole of SmolLM2's shape; trainer, a step of distillation; study, SmolLM2 at blocks of 1024 with three seeds. Exit
code 1 if parity does not hold, 2 for a mistake in the call. docs/gpu.md says what has to be carried there.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
# The bench's server imports torch and is forked; asking CUDA for its devices there would spoil it for every fork.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
# Processes end by force, and would leave the compiler's own workers behind.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import gpu_pieces  # noqa: E402
from gpu_pieces import PIECES, Run, Skipped, Unit  # noqa: E402
from gpu_work import error_line  # noqa: E402

from attnopt.bench.fresh_process import start_server  # noqa: E402
from attnopt.core.device import resolve_device  # noqa: E402
from attnopt.core.errors import UserError  # noqa: E402
from attnopt.core.files import read_json, write_json  # noqa: E402
from attnopt.core.machine import environment, machine_fingerprint, machine_line  # noqa: E402

FORMAT = 1
Units = Mapping[str, Mapping[str, Any]]
SORTS = ("kernels", "float32", "float64", "steps")


class OutOfTime(BaseException):
    """The deadline has come; nothing but `go_on` is to catch it."""


class Ledger:
    """OUT/gpu.json: the machine, and by piece and unit how it ended: ok, failed or stopped, in how many seconds.

    Args:
        shows: it is read alone, which may be done on another machine.
    Raises: UserError where the file is of another machine or size, or damaged.
    """

    def __init__(self, file: Path, run: Run, shows: bool = False):
        self.file = file
        head = {"format": FORMAT, "toy": run.toy, "device": run.device, "machine": machine_line(machine_fingerprint())}
        self.content: dict[str, Any] = read_json(file) if file.is_file() else {**head, "units": {}}
        if shows:
            return
        if other := {key: self.content.get(key) for key in head if self.content.get(key) != head[key]}:
            raise UserError(
                f"{file} is of {other}, and this call of { {k: head[k] for k in other} }; name another --out"
            )
        self.content["environment"] = environment()

    def of(self, unit: Unit) -> dict[str, Any] | None:
        """What is known of a unit whose key still holds."""
        found = self.content["units"].get(unit.piece, {}).get(unit.name)
        return found if found and found["key"] == unit.key else None

    def done(self, unit: Unit) -> bool:
        return not unit.again and (self.of(unit) or {}).get("status") == "ok"

    def note(self, unit: Unit, status: str, seconds: float, **more: Any) -> None:
        entry = {"status": status, "seconds": round(seconds, 1), "size": unit.size, "key": unit.key, **more}
        self.content["units"].setdefault(unit.piece, {})[unit.name] = entry
        write_json(self.file, self.content)

    def likely(self, unit: Unit) -> float:
        """Seconds that a unit will probably take: what four of five like it took, of the same size if there are any."""
        if unit.resumes:
            return unit.guess
        own = self.of(unit)
        if own and own["status"] == "stopped":
            return max(own["seconds"], unit.guess)
        before = [e for e in self.content["units"].get(unit.piece, {}).values() if e["status"] == "ok"]
        alike = sorted(e["seconds"] for e in before if e["size"] == unit.size)
        return alike[4 * len(alike) // 5] if alike else unit.guess


class Skip(NamedTuple):
    piece: str
    name: str
    why: str


def go_on(units: Sequence[Unit], ledger: Ledger, deadline: float) -> Iterator[Skip]:
    """Do what is left, what was never tried first; yields what is not begun, as it would not end in time.

    Args:
        deadline: of `time.monotonic`. What runs when it comes is stopped, and noted so.
    """
    left = [unit for unit in units if not ledger.done(unit)]
    for unit in sorted(left, key=lambda u: ledger.of(u) is not None):
        rest = deadline - time.monotonic()
        if rest < (likely := ledger.likely(unit)):
            yield Skip(unit.piece, unit.name, f"takes about {likely:.0f} s, {max(rest, 0):.0f} s were left")
            continue
        start = time.monotonic()
        try:
            with until(deadline):
                result = unit.run()
            ledger.note(unit, "ok", time.monotonic() - start, **result)
        except OutOfTime:
            ledger.note(unit, "stopped", time.monotonic() - start, error="stopped at the deadline")
        except Exception as error:
            ledger.note(unit, "failed", time.monotonic() - start, error=error_line(error))
        entry = ledger.of(unit) or {}
        print(f"{unit.piece} {unit.name}: {entry['status']}, {entry['seconds']} s {entry.get('error', '')}", flush=True)


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """Raise OutOfTime in the block when the deadline comes."""

    def ring(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(deadline - time.monotonic(), 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def broken(ledger: Ledger) -> list[str]:
    """Units of parity that failed, or found a deviation."""
    units = ledger.content["units"].get("parity", {})
    return [
        name
        for name, unit in units.items()
        if unit["status"] == "failed" or not all(row.get("passed") for row in unit.get("rows", []))
    ]


def told(skips: Sequence[Skip]) -> str:
    """One line: what was skipped and why, with what it was for the first of each piece."""
    if not skips:
        return "Skipped: nothing."
    pieces = {skip.piece: [s for s in skips if s.piece == skip.piece] for skip in skips}
    parts = [f"{piece}: {len(s)} ({s[0].name}: {s[0].why})" for piece, s in pieces.items()]
    return f"Skipped: {'; '.join(parts)}."


def table(piece: str, units: Units) -> str:
    """The piece's table, and a line for each unit that did not end well.

    Args:
        units: by name, as the ledger keeps them.
    """
    make = TABLES.get(piece, _stages)
    rest = [f"{name}: {u['status']}: {u['error']}" for name, u in units.items() if u.get("error")]
    return "\n".join([make(units), *([""] if rest else []), *(f"- {line}" for line in rest)])


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _rows(units: Units) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, row) for name, unit in units.items() for row in unit.get("rows", [])]


def _parity(units: Units) -> str:
    head = ["mechanism", "dtype", "fused", "kernels", "CPU float32", "CPU float64", "steps", "allowed", "holds"]
    rows = []
    for name, row in _rows(units):
        if "error" in row:
            rows.append([name, row["dtype"], *["-"] * 6, f"**failed**: {row['error']}"])
            continue
        worst = [_worst(row["found"].get(sort)) for sort in SORTS]
        verdict = "yes" if row["passed"] else "**no**"
        rows.append([name, row["dtype"], ", ".join(row["fused"]) or "-", *worst, f"{row['allowed']:.0e}", verdict])
    return _lines(head, rows)


def _worst(found: Mapping[str, float] | None) -> str:
    if not found:
        return "-"
    what, value = max(found.items(), key=lambda item: item[1])
    return f"{value:.1e} ({what})" if value else "0"


def _costs(units: Units) -> str:
    head = ["mechanism", "phase", "tokens", "time", "over softmax", "peak allocated, MiB", "reserved", "softmax's"]
    head += ["state, KiB", "softmax's", "J", "softmax's"]
    base: dict[tuple[str, int], Mapping[str, Any]] = {}
    for name, row in _rows(units):
        if name.startswith("softmax at"):
            base[row["phase"], row["length"]] = row
    rows = []
    for name, row in sorted(_rows(units), key=lambda r: (r[1]["phase"], r[1]["length"])):
        if row["subject"] == name.split(" at ")[0]:
            beside = [r for _, r in _rows({name: units[name]}) if r["phase"] == row["phase"] and r is not row]
            rows.append(_cost(row, beside[0] if beside else {}, base.get((row["phase"], row["length"]), {})))
    return _lines(head, rows)


def _cost(row: Mapping[str, Any], beside: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """beside: softmax in the same rounds. base: its own unit, for memory and energy."""
    early = "" if row["outcome"] == "ok" else f" ({row['outcome']})"
    time = f"{row['median']:.4g} {row['unit']}{' (noisy)' if row['noisy'] else ''}{early}" if row["median"] else early
    ratio = f"{row['median'] / beside['median']:.2f}" if row["median"] and beside.get("median") else "-"
    cells = [row["subject"], row["phase"], str(row["length"]), time.strip(), ratio]
    cells += [_number(row, "peak_mib"), _number(row, "peak_reserved_mib"), _number(base, "peak_mib")]
    cells += [_number(row, "state_bytes", 1024), _number(base, "state_bytes", 1024)]
    return [*cells, _number(row, "joules"), _number(base, "joules")]


def _number(row: Mapping[str, Any], name: str, scale: float = 1.0) -> str:
    value = row.get(name)
    return "-" if value is None else f"{value / scale:.4g}"


def _trainer(units: Units) -> str:
    head = ["mechanism", "tokens/s", "peak allocated above rest, MiB", "reserved", "at rest", "outcome"]
    names = ("tokens_per_s", "peak_mib", "peak_reserved_mib", "resting_mib")
    return _lines(head, [[r["mechanism"], *(_number(r, n) for n in names), r["outcome"]] for _, r in _rows(units)])


def _stages(units: Units) -> str:
    rows = [[name, unit["status"], f"{unit['seconds']:.0f}"] for name, unit in units.items()]
    return _lines(["stage", "ended", "seconds, last call"], rows)


TABLES: dict[str, Callable[[Units], str]] = {
    "parity": _parity,
    "operations": _costs,
    "model": _costs,
    "trainer": _trainer,
}


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder for gpu.json and the study")
    parser.add_argument("--minutes", type=float, default=9.0, help="counted from the start of the program")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="small shapes, two mechanisms where there are many")
    parser.add_argument("--only", nargs="+", choices=PIECES, default=list(PIECES), metavar="PIECE")
    parser.add_argument("--show", action="store_true", help="do nothing, print the tables of what is done")
    parser.add_argument("--weights", nargs="+", type=Path, default=[], metavar="FILE", help="SmolLM2 as .gguf")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None, start: float | None = None) -> int:
    """Returns the exit code. start: when the minutes began, of `time.monotonic`."""
    args = arguments(given)
    deadline = (time.monotonic() if start is None else start) + 60 * args.minutes
    run = Run(args.device, args.toy, args.out.resolve(), args.weights)
    try:
        if not args.show:
            resolve_device(args.device)
        ledger = Ledger(run.out / "gpu.json", run, args.show)
    except UserError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2
    skips = [] if args.show else list(everything(args.only, run, ledger, deadline))
    for piece in args.only:
        if units := ledger.content["units"].get(piece):
            print(f"\n## {piece}\n\n{table(piece, units)}")
    print(f"\n{told(skips)}")
    return 1 if broken(ledger) else 0


def everything(pieces: Sequence[str], run: Run, ledger: Ledger, deadline: float) -> Iterator[Skip]:
    """All pieces in turn."""
    start_server()
    for piece in pieces:
        try:
            units = gpu_pieces.PIECES[piece](run)
        except Skipped as skipped:
            yield Skip(piece, "all of it", str(skipped))
            continue
        yield from go_on(units, ledger, deadline)


if __name__ == "__main__":
    began = time.monotonic() - time.process_time()  # the imports are a part of the minutes
    raise SystemExit(main(start=began))
