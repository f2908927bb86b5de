"""data/machine.json: the hardware at hand, which the bench depends on. Written only where it changed."""

import sys

from attnopt.core.errors import UserError
from attnopt.core.files import read_json, write_json
from attnopt.core.machine import machine_fingerprint, machine_line
from attnopt.core.paths import MACHINE

CHANGED = """attnopt: other hardware than the bench's records were measured on, so the bench measures again.
  was: {before}
  is:  {now}
To keep those records instead, stop this run, then: git restore dvc.lock && dvc checkout && dvc freeze machine"""


def run() -> None:
    now = machine_fingerprint()
    try:
        before = read_json(MACHINE)
    except UserError:
        before = None
    if before == now:
        return
    if before is not None:
        print(CHANGED.format(before=machine_line(before), now=machine_line(now)), file=sys.stderr)
    write_json(MACHINE, now)
