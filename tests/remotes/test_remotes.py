"""DVC's remotes as docs/remotes.md sets them up, against real servers on this machine: SSH and S3."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from .servers import S3, SSHD, Ssh, missing

FILES = 40
PIPELINE = f"""stages:
  make:
    cmd: echo >> ran && mkdir -p out && for i in $(seq {FILES}); do head -c 100000 /dev/zero > out/$i; echo $i >> out/$i; done
    outs: [out]
"""
REASONS = {
    "ssh": [*missing("dvc_ssh"), *([] if SSHD else ["sshd (apt-get install openssh-server)"])],
    "s3": missing("dvc_s3", "moto", "flask"),
}
pytestmark = pytest.mark.slow


class Clone:
    """A DVC project with the server as its remote."""

    def __init__(self, folder: Path, server: Any):
        self.folder, self.server = folder, server

    def dvc(self, *arguments: str, fails: bool = False, **env: str) -> str:
        """What a command says; where it fails, a line says why, a second at most what came of it, and none is a
        traceback."""
        ended = subprocess.run(**self.call(*arguments, **env), timeout=100, check=False)
        said = ended.stdout
        assert bool(ended.returncode) == fails, said
        assert "Traceback" not in said
        assert (1 <= said.count("ERROR: ") <= 2) == fails, said
        return said

    def call(self, *arguments: str, **env: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "dvc", *map(str, arguments)]
        own = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "FSSPEC_", "DVC_"))}
        env = own | self.server.environment() | {"HOME": str(self.folder.parent)} | env
        io = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return {"args": command, "cwd": self.folder, "env": env, **io}

    def log_in(self, right: bool = True) -> None:
        """Credentials stay out of git: in .dvc/config.local."""
        for key, value in self.server.credentials(right).items():
            self.dvc("remote", "modify", "--local", "storage", key, value)

    def git(self, *arguments: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *who, *arguments], cwd=self.folder, check=True, capture_output=True)

    def clone(self, name: str) -> "Clone":
        other = Clone(self.folder.parent / name, self.server)
        self.git("clone", "-q", ".", str(other.folder))
        shutil.copy(self.folder / ".dvc/config.local", other.folder / ".dvc/config.local")
        return other

    @property
    def runs(self) -> int:
        ran = self.folder / "ran"
        return len(ran.read_text().splitlines()) if ran.exists() else 0

    @property
    def content(self) -> dict[str, str]:
        return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in (self.folder / "out").glob("*")}


@pytest.fixture(params=["ssh", "s3"])
def server(request, tmp_path) -> Iterator[Any]:
    if lacking := REASONS[request.param]:
        pytest.skip(f"no {request.param} server on this machine: {', '.join(lacking)} is missing")
    started = {"ssh": Ssh, "s3": S3}[request.param](tmp_path / "server")
    yield started
    started.die()


@pytest.fixture
def first(server, tmp_path) -> Clone:
    clone = Clone(tmp_path / "first", server)
    clone.folder.mkdir()
    clone.git("init", "-q")
    clone.dvc("init", "-q")
    clone.dvc("config", "core.analytics", "false")
    settings = server.remote()
    clone.dvc("remote", "add", "-q", "-d", "storage", settings.pop("url"))
    for key, value in {**settings, "verify": "true"}.items():
        clone.dvc("remote", "modify", "storage", key, value)
    clone.log_in()
    (clone.folder / "dvc.yaml").write_text(PIPELINE)
    clone.dvc("repro", "-q")
    clone.git("add", "-A")
    clone.git("commit", "-q", "-m", "x")
    return clone


def halves(server: Any) -> list[str]:
    """Objects on the server that are not what their name says; what was on its way over SSH has a name of its own."""
    files = [name for name in server.objects() if name.startswith("files/md5/") and not name.endswith(".tmp")]
    names = {name: "".join(Path(name).parts[-2:]).removesuffix(".dir") for name in files}
    return [name for name, digest in names.items() if hashlib.md5(server.read(name)).hexdigest() != digest]


def test_push_pull_and_a_run_that_executes_nothing(first: Clone, server: Any) -> None:
    assert f"{FILES + 1} files pushed" in first.dvc("push")
    assert halves(server) == []
    second = first.clone("second")
    second.git("rm", "-q", "--cached", "ran")
    before = second.runs
    second.dvc("pull")
    assert second.content == first.content
    assert "up to date" in second.dvc("repro")
    assert second.runs == before
    shutil.rmtree(first.folder / ".dvc/cache")
    first.log_in(right=False)
    said = first.dvc("fetch", fails=True)
    assert "ermission denied" in said or "Forbidden" in said or "SignatureDoesNotMatch" in said
    assert second.content == first.content, "nothing is lost"


def test_a_server_that_dies_half_way_through_a_push(first: Clone, server: Any) -> None:
    before = first.content
    pushing = subprocess.Popen(**first.call("push", "-j", "1"))
    until = time.monotonic() + 60
    while len(server.objects()) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    server.die()
    said = pushing.communicate(timeout=100)[0]
    assert pushing.returncode not in (0, None)
    assert "ERROR: " in said
    assert "Traceback" not in said
    assert first.content == before, "nothing is lost"
    server.start()
    first.log_in()
    assert halves(server) == [], "no half of an object under its name"
    first.dvc("push")
    second = first.clone("second")
    second.dvc("pull")
    assert second.content == first.content


def test_a_damaged_object_is_not_taken_for_a_whole_one(first: Clone, server: Any) -> None:
    first.dvc("push")
    name = next(name for name in server.objects() if name.startswith("files/md5/") and not name.endswith(".dir"))
    server.damage(name)
    second = first.clone("second")
    assert "failed to pull data" in second.dvc("pull", fails=True)
    assert "".join(Path(name).parts[-2:]) not in second.content.values()
    for gone in [name, *(name for name in server.objects() if name.endswith(".dir"))]:
        server.remove(gone)  # without its .dir files DVC looks again at what a server has
    first.dvc("push")
    second.dvc("pull")
    assert second.content == first.content


def test_a_server_with_another_key_is_not_spoken_to(tmp_path: Path) -> None:
    if REASONS["ssh"]:
        pytest.skip(f"no ssh server on this machine: {', '.join(REASONS['ssh'])} is missing")
    server = Ssh(tmp_path / "server")
    try:
        clone = Clone(tmp_path / "first", server)
        clone.folder.mkdir()
        clone.dvc("init", "-q", "--no-scm")
        clone.dvc("remote", "add", "-q", "-d", "storage", server.remote()["url"])
        clone.dvc("remote", "modify", "storage", "verify", "true")
        clone.log_in()
        (clone.folder / "dvc.yaml").write_text(PIPELINE)
        clone.dvc("repro", "-q")
        wrong = {"FSSPEC_ABSTRACT_KNOWN_HOSTS": str(server.known_hosts("stranger"))}
        assert "Host key is not trusted" in clone.dvc("push", fails=True, **wrong)
        assert not server.store.exists()
        said = doctor(clone, **wrong)
        assert "Host key is not trusted" in said
        settings = tmp_path / ".config/fsspec"
        settings.mkdir(parents=True)
        (settings / "ssh.json").write_text(f'{{"abstract": {{"known_hosts": "{server.known_hosts()}"}}}}')
        call = clone.call()["env"]
        del call["FSSPEC_ABSTRACT_KNOWN_HOSTS"]
        assert "reached, host key checked" in doctor(clone, call)
        (settings / "ssh.json").unlink()
        assert "its host key is not checked" in doctor(clone, call)
    finally:
        server.die()


def doctor(clone: Clone, env: dict[str, str] | None = None, **more: str) -> str:
    """The line about the remote."""
    env = (env or clone.call()["env"]) | {"PYTHONPATH": str(ROOT)} | more
    script = "from attnopt.tools.doctor import remote_line; print(remote_line())"
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=clone.folder, env=env, capture_output=True, text=True, check=True, timeout=100)
    assert ended.stdout.count("\n") == 1
    return ended.stdout
