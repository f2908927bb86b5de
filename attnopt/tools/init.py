"""A study that stands alone: a folder that runs on the installed package, without a checkout."""

import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from attnopt.core.errors import RunError, UserError
from attnopt.core.files import written_aside
from attnopt.tools.pipeline import is_current, study_pipeline
from attnopt.tools.shipped import STUDY
from attnopt.tools.study import compose_study

HIDDEN = ("gitignore", "gitattributes")
"""Files of STUDY that have a dot before their name in a study."""
PIPELINE = "dvc.yaml"
DVC_CONFIG = "[core]\n    analytics = false\n    check_update = false\n"


def init_study(folder: Path, study: str, git: bool | None = None, dvc: bool = True) -> None:
    """Write a study's folder, whole or not at all.

    Args:
        folder: a new one, or one that is empty.
        study: the named study that params.yaml is to hold.
        git: whether to make it a git repository; None: where it does not lie in one already.
        dvc: whether to make it a DVC repository, without which `dvc repro` does not run.
    Raises: UserError, one line, where the study is unknown, the folder holds something, or git is not there.
    """
    params, target = compose_study(study), folder.resolve()
    _check_free(folder)
    around = any((parent / ".git").exists() for parent in target.parents)
    own_git = not around if git is None else git
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as aside:
        made = Path(aside) / "study"
        _write_files(made, params)
        if own_git:
            _run("git", "init", "--quiet", cwd=made)
        if dvc:
            _init_dvc(made, own_git, around)
        if target.is_dir():  # it stays the one that a shell may stand in
            for path in made.iterdir():
                path.rename(target / path.name)
        else:
            made.rename(target)
    enter = "" if target == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    print(f"{folder} holds the study '{study}'; `{enter}dvc repro` runs it")


def write_pipeline(folder: Path) -> None:
    """Write dvc.yaml alone anew, for the installed version. Raises UserError where the folder is no study's."""
    if not (folder / "params.yaml").is_file():
        raise UserError(f"{folder} is no study: it has no params.yaml; without --pipeline, attnopt init makes one")
    with written_aside(folder / PIPELINE) as aside:
        aside.write_text(study_pipeline(), encoding="utf-8")


def note_of_pipeline(folder: Path = Path()) -> str | None:
    """What to tell a user whose dvc.yaml is of another version's pipeline."""
    file = folder / PIPELINE
    if not file.is_file() or is_current(file.read_text(encoding="utf-8")):
        return None
    return "dvc.yaml is of another version of attnopt: `attnopt init --pipeline .` writes it anew"


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and not an empty folder; a study wants a new one")
    try:
        folder.resolve().parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{folder} cannot be made: what is to hold it is no folder") from None


def _write_files(made: Path, params: str) -> None:
    shutil.copytree(STUDY, made, ignore=shutil.ignore_patterns("__pycache__"))
    for name in HIDDEN:
        (made / name).rename(made / f".{name}")
    (made / "params.yaml").write_text(params, encoding="utf-8")
    (made / PIPELINE).write_text(study_pipeline(), encoding="utf-8")


def _init_dvc(made: Path, own_git: bool, around: bool) -> None:
    """In a repository that lies around it DVC is left to find that, and nothing is staged there."""
    _run(sys.executable, "-m", "dvc", "init", "--quiet", *([] if own_git else ["--no-scm"]), cwd=made)
    scm = "" if own_git or around else "    no_scm = true\n"
    (made / ".dvc" / "config").write_text(DVC_CONFIG + scm, encoding="utf-8")


def _run(*command: str, cwd: Path) -> None:
    try:
        subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not installed; --no-git makes a study without it") from None
    except subprocess.CalledProcessError as error:
        raise RunError(f"`{' '.join(command)}` failed: {error.stderr.strip() or error.returncode}") from None
