"""Three clones and a shared remote: two share the variants, the third assembles the report and runs nothing else.

DVC, git and every stage are the real ones; the stages run in this process, so that torch is imported once.
"""

import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from threading import Thread

import pytest
from conftest import ROOT, every_stage_in_seconds, small_world

from attnopt.cli import app
from attnopt.core.files import read_json

CLIENT = """#!{python}
import os, sys
from multiprocessing.connection import Client
with Client({address!r}) as line:
    line.send((os.getcwd(), sys.argv[1:] + os.environ.get("DVC_STAGE", "").split("@")[1:]))
    sys.exit(line.recv())
"""
VARIANTS = {"softmax": "softmax", "none": "none", "masks": "masks", "window": "window"}
CODE = ["attnopt", "stages", "dvc.yaml", ".dvc", ".dvcignore", ".gitignore", ".gitattributes"]


@dataclass
class Machines:
    """Clones of one repository, each a machine.

    Attributes:
        ran: the machine's name and the command of every stage that DVC ran, in order.
    """

    folder: Path
    ran: list[tuple[str, str]] = field(default_factory=list)

    def clone(self, name: str) -> None:
        self.on(".", f"git clone -q origin {name}")
        self.on(name, "git config merge.dvc-lock.driver", "attnopt merge-lock %O %A %B")

    def on(self, name: str, command: str, *more: str) -> str:
        path = os.pathsep.join([str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        who = {f"GIT_{role}_{key}": "me@here" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
        done = subprocess.run(
            [*command.split(), *more],
            cwd=self.folder / name,
            env=os.environ | who | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def serve(self, listener: Listener) -> None:
        while True:
            with listener.accept() as line:
                if (asked := line.recv()) is None:
                    return
                self._run(line, *asked)

    def _run(self, line: Connection, where: str, arguments: list[str]) -> None:
        os.chdir(where)
        if arguments[0] != "merge-lock":
            self.ran.append((Path(where).name, " ".join(arguments)))
        try:
            app(arguments, standalone_mode=False)
            line.send(0)
        except BaseException:
            traceback.print_exc()
            line.send(1)


@pytest.fixture
def machines(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    """The machines a, b and c, in whose repository a tiny study lies, with nothing run."""
    (tmp_path / "bin").mkdir()
    address = str(tmp_path / "line")
    client = tmp_path / "bin" / "attnopt"
    client.write_text(CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    _study(tiny, tmp_path / "first", monkeypatch)
    made = Machines(tmp_path)
    made.on("first", "git init -q -b main")
    made.on("first", f"dvc remote modify storage url {tmp_path / 'remote'}")
    made.on("first", "git add -A")
    made.on("first", "git commit -q -m study")
    made.on(".", "git clone -q --bare first origin")
    with Listener(address) as listener:
        thread = Thread(target=made.serve, args=[listener])
        thread.start()
        for name in "abc":
            made.clone(name)
        yield made
        with _connected(address) as line:
            line.send(None)
        thread.join()


def _connected(address: str) -> Connection:
    from multiprocessing.connection import Client

    return Client(address)


def _study(tiny: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = small_world(tiny, folder, monkeypatch)
    workspace.set(
        variants=VARIANTS,
        mixes={},
        controls=["softmax", "none"],
        masks={"candidates": ["last:1", "window:4"]},
        window={"window": 8},
        distill={"steps": 4},
    )
    every_stage_in_seconds(workspace)
    listed = subprocess.run(["git", "ls-files", *CODE], cwd=ROOT, capture_output=True, text=True, check=False)
    for file in listed.stdout.splitlines():
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, target)


@pytest.mark.slow
def test_two_machines_take_half_of_the_variants_each_and_a_third_runs_the_report_alone(machines: Machines) -> None:
    on, ran = machines.on, machines.ran
    on("a", "dvc repro distill@softmax distill@none")
    on("a", "dvc push --run-cache")
    on("a", "git add dvc.lock")
    on("a", "git commit -q -m half")
    on("a", "git push -q origin main")
    assert sorted(ran) == [("a", stage) for stage in ("cache-logits", "distill none", "distill softmax", "tokenize")]
    ran.clear()

    on("b", "dvc pull --run-cache --allow-missing")
    on("b", "dvc repro --pull distill@masks distill@window")
    assert sorted(ran) == [("b", "distill masks"), ("b", "distill window")], "what a made of the data is b's too"
    on("b", "git add dvc.lock")
    on("b", "git commit -q -m half")
    on("b", "git pull -q --no-rebase --no-edit origin main")
    on("b", "dvc pull --allow-missing")
    ran.clear()
    on("b", "dvc repro search evaluate sample bench")
    assert sorted(ran) == [("b", stage) for stage in ("bench", "evaluate", "sample", "search")]
    on("b", "git commit -q -a -m whole")
    on("b", "dvc push")
    on("b", "git push -q origin main")
    ran.clear()

    on("c", "git pull -q")
    on("c", "dvc pull --allow-missing")
    on("c", "dvc repro --single-item report")
    assert ran == [("c", "report")]
    assert set(read_json(machines.folder / "c/reports/metrics.json")) == set(VARIANTS)
    for name in VARIANTS:
        student, made_on = f"models/{name}/0/weights.safetensors", "ab"[name in ("masks", "window")]
        assert (machines.folder / "c" / student).read_bytes() == (machines.folder / made_on / student).read_bytes()
    status = on("c", "dvc status")
    assert status.split() == ["bench:", "always", "changed"]
