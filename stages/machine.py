"""data/machine.json: the hardware at hand, which the bench depends on. Written only where it changed."""

import sys

from attnopt.errors import UserError
from attnopt.files import read_json, write_json
from attnopt.hardware import fingerprint, phrase
from stages import MACHINE

CHANGED = """attnopt: other hardware than the bench's records were measured on, so the bench measures again.
  was: {before}
  is:  {now}
To keep those records instead, stop this run, then: git restore dvc.lock && dvc checkout && dvc freeze machine"""


def run() -> None:
    now = fingerprint()
    try:
        before = read_json(MACHINE)
    except UserError:
        before = None
    if before == now:
        return
    if before is not None:
        print(CHANGED.format(before=phrase(before), now=phrase(now)), file=sys.stderr)
    write_json(MACHINE, now)
