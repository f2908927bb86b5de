"""The subcommands around a study, which the command line takes up. Heavy imports happen inside them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from attnopt.tools.complete import studies

NAMES = "mini, all, mixture, gpt2, smollm2"


def study(
    name: Annotated[str, typer.Argument(help=f"A file of studies/: {NAMES}.", autocompletion=studies)],
) -> None:
    """Write a named study into params.yaml; `dvc repro` then runs it."""
    from attnopt.tools.study import apply_study

    apply_study(name)


def init(
    folder: Annotated[Path, typer.Argument(help="A new folder, or one that is empty.")],
    study: Annotated[str, typer.Option(help=f"What params.yaml holds: {NAMES}.", autocompletion=studies)] = "mini",
    git: Annotated[
        bool | None, typer.Option(help="A git repository of its own; by default where the folder lies in none.")
    ] = None,
    dvc: Annotated[bool, typer.Option(help="A DVC repository, as `dvc repro` needs.")] = True,
    pipeline: Annotated[
        bool, typer.Option("--pipeline", help="Only write dvc.yaml anew, in a study that is there.")
    ] = False,
) -> None:
    """Make a folder for a study that runs on the installed attnopt: `cd FOLDER && dvc repro`."""
    from attnopt.tools.init import init_study, write_pipeline

    write_pipeline(folder) if pipeline else init_study(folder, study, git, dvc)


def code() -> None:
    """Write code.json, the digests of what is installed and in mechanisms/: the first stage of a study."""
    from attnopt.tools.init import note_of_pipeline
    from attnopt.tools.installed import write_code

    write_code()
    if note := note_of_pipeline():
        print(f"note: {note}", file=sys.stderr)


def merge_lock(
    base: Annotated[Path, typer.Argument(help="%O of git: dvc.lock as both sides had it.")],
    ours: Annotated[Path, typer.Argument(help="%A: as it is here; the result is written to it.")],
    theirs: Annotated[Path, typer.Argument(help="%B: as it is on the other machine.")],
) -> None:
    """Merge dvc.lock of two machines, stage by stage: git's merge driver of it, see docs/many-machines.md."""
    from attnopt.tools.lock import merge_lock as merge

    if twice := merge(base, ours, theirs):
        print(f"dvc.lock: run on both sides, so that `dvc repro` looks at them again: {', '.join(twice)}")


def checkpoints(prune: Annotated[bool, typer.Option(help="Remove those that no process holds.")] = False) -> None:
    """List, or remove, the checkpoints of interrupted runs."""
    from attnopt.core import checkpoint

    if prune:
        print(f"removed {checkpoint.prune_checkpoints()}")
    for key, mib, hours in checkpoint.list_checkpoints():
        print(f"{key}  {mib:8.1f} MiB  {hours:6.1f} h ago")


def doctor() -> None:
    """Say what this machine has: versions, device, precision, and whether a hub can be asked."""
    from attnopt.tools.doctor import diagnose

    print(diagnose())


def pretrain(
    wikitext: Annotated[Path, typer.Argument(help="Folder with WikiText-2's train.txt.")],
    start: Annotated[Path, typer.Argument(help="Folder of the teacher of 256 positions that it grows from.")],
    out: Annotated[Path, typer.Option(help="Where the model is written.")] = Path("mini-gpt2"),
    steps: Annotated[int, typer.Option(min=1)] = 1500,
    lr: Annotated[float, typer.Option(min=0)] = 3e-3,
    seed: int = 0,
) -> None:
    """Make the bundled teacher, of 1024 positions, that copies and recalls.

    It grows from the one that was bundled before (attnopt/assets/mini-gpt2 at 43c4871), takes an hour on two cores and
    goes on where it was stopped. Use it with `teacher: {source: path, path: OUT}`.
    """
    from attnopt.tools.pretrain.run import pretrain as train

    train(wikitext, out, steps, lr, seed, start)
