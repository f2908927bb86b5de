"""What this machine has, in a few lines, for a user and for a bug report."""

import os

from attnopt.core.machine import environment


def diagnose() -> str:
    import torch

    from attnopt import mechanisms
    from attnopt.core.device import resolve_device, resolve_precision
    from attnopt.ops import dispatch as kernels
    from attnopt.teacher.model import load_teacher
    from attnopt.teacher.params import TeacherParams

    device = resolve_device("auto")
    model, _ = load_teacher(TeacherParams())
    offline = "yes" if os.environ.get("HF_HUB_OFFLINE") == "1" else "no"
    rows = {
        **environment(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "training precision": str(resolve_precision("auto", device)).removeprefix("torch."),
        "bundled teacher": f"{sum(p.numel() for p in model.parameters()):,} parameters",
        **{f"kernel of {operation}": name for operation, name in kernels.plan(device.type).items()},
        "mechanisms": ", ".join(mechanisms.mechanism_names()),
        "offline (HF_HUB_OFFLINE)": offline,
        "DVC remote": remote_line(),
    }
    width = max(len(name) for name in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def remote_line() -> str:
    """The default DVC remote of the folder here: whether it is reached, and what its settings leave open."""
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo

    try:
        remote = Repo().cloud.get_remote_odb()
        where = remote.fs.unstrip_protocol(remote.path)
    except NotDvcRepoError:
        return "none: this is no DVC project"
    except (DvcException, ImportError) as error:
        return _first_line(error)
    checks = _checks_host_key() if where.startswith("ssh://") else None
    try:
        remote.fs.exists(remote.path)
    except Exception as error:  # each kind of remote fails in its own way
        return f"{where}: not reached: {_first_line(error)}"
    left_open = [] if checks in (None, True) else ["its host key is not checked"]
    left_open += [] if remote.verify else ["damaged objects are not noticed"]
    if left_open:
        return f"{where}: reached, but {' and '.join(left_open)}: see docs/remotes.md"
    return f"{where}: reached{', host key checked' if checks else ''}"


def _checks_host_key() -> bool:
    """Whether the machine's fsspec settings tell DVC's SSH which host keys are known; by default it takes any."""
    from dvc_ssh.spec import SSHFileSystem
    from fsspec.config import apply_config

    return bool(apply_config(SSHFileSystem, {}).get("known_hosts"))


def _first_line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split("\n")[0].split())
