"""dvc.lock of two machines made one: each stage as the machine left it that ran it.

git merges it as text and cannot: entries of different stages share most of their lines. DVC's run cache does not carry
them either, as it leaves out stages whose outputs `persist`.
"""

from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from attnopt.core.errors import UserError
from attnopt.core.files import written_aside
from attnopt.tools.study import yaml_writer


def merge_lock(base: Path, ours: Path, theirs: Path) -> list[str]:
    """Merge three versions of dvc.lock into `ours`: a stage is taken from the side that changed it.

    Returns: the stages that both sides changed, each in another way. They are left out, so that `dvc repro` looks at
        them again and their commands make what does not hold.
    Raises: UserError where one of the files is no dvc.lock; nothing is then written.
    """
    old, mine, other = (_read(path) for path in (base, ours, theirs))
    merged, twice = {}, []
    for stage in {**mine["stages"], **other["stages"]}:
        before, here, there = (lock["stages"].get(stage) for lock in (old, mine, other))
        if here != before and there != before and here != there:
            twice.append(stage)
        elif (chosen := here if there == before else there) is not None:
            merged[stage] = chosen
    with written_aside(ours) as aside, aside.open("w", encoding="utf-8") as file:
        yaml_writer().dump({"schema": mine["schema"], "stages": merged}, file)
    return twice


def _read(path: Path) -> dict[str, Any]:
    """An empty file, which git hands over where there was none, has no stages."""
    text = path.read_text(encoding="utf-8")
    try:
        content = yaml_writer().load(text) if text.strip() else {"schema": "2.0", "stages": {}}
    except YAMLError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("stages"), dict):
        raise UserError(f"{path} is no dvc.lock: it has no stages")
    return content
