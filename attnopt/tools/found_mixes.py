"""What `attnopt search` found, and its rivals, written into params.yaml as mixes, to be trained with equal tokens."""

from pathlib import Path

from attnopt import settings as params
from attnopt.core.errors import UserError
from attnopt.core.files import written_aside
from attnopt.core.paths import RESULTS
from attnopt.records.search import SearchRecord
from attnopt.tools.study import yaml_writer

SOFTMAX, UNTRAINED = "softmax", ("rescored", "random")


def write_found_mixes(share: float, path: Path = Path("params.yaml")) -> None:
    """Under `mixes`, a name per way and budget: `searched_125` holds at most 0.125 of softmax's state, as `greedy_125`
    does. A rival that is the same mix as one before it is left out, and so are the random ones. Other mixes stay.

    Raises: UserError where the search had no such budget, or there is no record.
    """
    found = SearchRecord.read(RESULTS / "search" / "record.json")
    if share not in found.budgets:
        raise UserError(f"--write {share:g}: the search had no such budget of state, only {found.budgets}")
    rows = [row for row in found.mixes if (row.cost, row.budget) == ("state", share) and row.way not in UNTRAINED]
    content = yaml_writer().load(path.read_text(encoding="utf-8"))
    mixes = content.setdefault("mixes", {})
    written: dict[tuple[str, ...], str] = {}
    for row in sorted(rows, key=lambda row: row.way != "searched"):
        layers, name = tuple(row.layers), f"{row.way}_{round(share * 1000)}"
        if layers in written:
            print(f"{name}: the same mix as {written[layers]}")
        elif set(layers) != {SOFTMAX}:
            mixes[name] = {"layers": {i: one for i, one in enumerate(layers) if one != SOFTMAX}}
            written[layers] = name
    with written_aside(path) as aside:
        yaml_writer().dump(content, aside)
        params.load_settings(aside)
    print(f"params.yaml now has the mixes {', '.join(written.values())}; `dvc repro` trains them as `distill` says")
