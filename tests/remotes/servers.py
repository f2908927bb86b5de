"""Real servers on this machine, each with a port of its own: OpenSSH's, and an S3 server over HTTP."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
SECONDS = 30


def missing(*modules: str) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Server:
    """A process that listens on a port, which dies with all that it started."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder, free_port()
        folder.mkdir()
        self.start()

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, start_new_session=True)
        for _ in range(SECONDS * 20):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError((self.folder / "log").read_text())

    def die(self) -> None:
        """With its sessions, as when the machine is switched off."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            for session in self.sessions():
                os.kill(session, signal.SIGKILL)
            self.process.wait()

    def sessions(self) -> list[int]:
        """Processes that it started and that left its group."""
        return []


class Ssh(Server):
    """sshd for the user who runs the tests, with a key of its own and one that it lets in."""

    def __init__(self, folder: Path):
        self.store = folder / "store"
        super().__init__(folder)

    def command(self) -> list[str]:
        for name in ("host", "user", "stranger"):
            if not (self.folder / name).exists():
                key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
                subprocess.run(key, check=True)
        lines = {
            "Port": self.port, "ListenAddress": "127.0.0.1", "HostKey": self.folder / "host",
            "AuthorizedKeysFile": self.folder / "user.pub", "StrictModes": "no", "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no", "UsePAM": "no", "PidFile": "none", "PermitRootLogin": "yes",
            "Subsystem": "sftp internal-sftp",
        }  # fmt: skip
        (self.folder / "config").write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        return [str(SSHD), "-D", "-e", "-f", str(self.folder / "config")]

    def sessions(self) -> list[int]:
        """Those of its children, which sshd gives a session each."""
        import psutil

        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def die(self) -> None:
        children = self.sessions() if self.process.poll() is None else []
        super().die()
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def known_hosts(self, key: str = "host") -> Path:
        path = self.folder / f"known_{key}"
        path.write_text(f"[127.0.0.1]:{self.port} {(self.folder / f'{key}.pub').read_text()}")
        return path

    def remote(self) -> dict[str, Any]:
        return {"url": f"ssh://127.0.0.1:{self.port}{self.store}"}

    def credentials(self, right: bool = True) -> dict[str, Any]:
        import getpass

        return {"user": getpass.getuser(), "keyfile": self.folder / ("user" if right else "stranger")}

    def environment(self) -> dict[str, str]:
        return {"FSSPEC_ABSTRACT_KNOWN_HOSTS": str(self.known_hosts()), "SSH_AUTH_SOCK": ""}

    def objects(self) -> list[str]:
        return sorted(str(p.relative_to(self.store)) for p in self.store.rglob("*") if p.is_file())

    def read(self, name: str) -> bytes:
        return (self.store / name).read_bytes()

    def damage(self, name: str) -> None:
        (self.store / name).chmod(0o644)
        (self.store / name).write_bytes(b"damaged")

    def remove(self, name: str) -> None:
        (self.store / name).unlink()


class S3(Server):
    """moto's server, which checks who asks once the bucket and its user are made; it forgets all when it dies."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(self.port)]

    def start(self) -> None:
        super().start()
        vars(self).pop("key", None)
        user, rights = self._client("iam"), {"Action": "s3:*", "Effect": "Allow", "Resource": "*"}
        user.create_user(UserName="student")
        policy = json.dumps({"Version": "2012-10-17", "Statement": [rights]})
        user.put_user_policy(UserName="student", PolicyName="s3", PolicyDocument=policy)
        self.key = user.create_access_key(UserName="student")["AccessKey"]
        self._client("s3").create_bucket(Bucket="study")
        self._check_everyone()

    def _check_everyone(self) -> None:
        from urllib.request import Request, urlopen

        plain = {"Content-Type": "text/plain"}
        urlopen(Request(f"{self.endpoint}/moto-api/reset-auth", b"0", plain, method="POST")).close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _client(self, name: str) -> Any:
        import boto3

        key = getattr(self, "key", {"AccessKeyId": "first", "SecretAccessKey": "first"})
        where = {"endpoint_url": self.endpoint, "region_name": "us-east-1"}
        who = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}
        return boto3.client(name, **where, **who)

    def remote(self) -> dict[str, Any]:
        return {"url": "s3://study/dvc", "endpointurl": self.endpoint, "region": "us-east-1"}

    def credentials(self, right: bool = True) -> dict[str, Any]:
        secret = self.key["SecretAccessKey"] if right else "wrong"
        return {"access_key_id": self.key["AccessKeyId"], "secret_access_key": secret}

    def environment(self) -> dict[str, str]:
        return {"AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"}

    def objects(self) -> list[str]:
        found = self._client("s3").list_objects_v2(Bucket="study", Prefix="dvc/").get("Contents", [])
        return sorted(row["Key"].removeprefix("dvc/") for row in found)

    def read(self, name: str) -> bytes:
        return self._client("s3").get_object(Bucket="study", Key=f"dvc/{name}")["Body"].read()

    def damage(self, name: str) -> None:
        self._client("s3").put_object(Bucket="study", Key=f"dvc/{name}", Body=b"damaged")

    def remove(self, name: str) -> None:
        self._client("s3").delete_object(Bucket="study", Key=f"dvc/{name}")
