"""The pipeline of a study that stands alone: the repository's own dvc.yaml, with code.json in place of source files."""

import io
import re
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from attnopt.core.files import sha256
from attnopt.tools.installed import CODE
from attnopt.tools.shipped import shipped
from attnopt.tools.study import yaml_writer

KEYS = {
    r"attnopt/mechanisms/((?!__init__|base)[^/]+)\.py": r"mechanisms.\1",
    r"attnopt/mechanisms": "mechanisms",
    r"attnopt/assets/(.+)": r"assets.\1",
}
"""What a dependency of the repository is in code.json; all others are part of the stage's own digest."""
HEAD = """\
# Pipeline {digest}: `attnopt init --pipeline .` writes it anew for another version of attnopt.
# The stage `code` looks what is installed and what lies in mechanisms/, each time; the others name what they run of it,
# so that a new version, or a change to a mechanism of your own, runs again what changed.
# Outputs that `persist` carry a key of all that they are a function of: what still holds is kept.
"""


def study_pipeline() -> str:
    """The text of a study's dvc.yaml."""
    content = yaml_writer().load(shipped("dvc.yaml").read_text(encoding="utf-8"))
    content.ca.comment = None  # the repository's own head
    for name, stage in content["stages"].items():
        _replace_source_files(name, stage.get("do", stage))
    content["stages"].insert(0, "code", _code_stage())
    text = io.StringIO()
    yaml_writer().dump(content, text)
    return HEAD.format(digest=sha256(text.getvalue())[:12]) + text.getvalue()


def is_current(dvc_yaml: str) -> bool:
    """Whether a study's dvc.yaml is of this version's pipeline, whatever its user has changed in it since.

    One whose head its user has taken away is left to them.
    """
    head = dvc_yaml.split("\n", 1)[0]
    return not head.startswith(HEAD.split("{")[0]) or head == study_pipeline().split("\n", 1)[0]


def _code_stage() -> CommentedMap:
    outs = CommentedSeq([CommentedMap({CODE.name: CommentedMap({"cache": False})})])
    return CommentedMap({"cmd": "attnopt code", "always_changed": True, "outs": outs})


def _replace_source_files(name: str, stage: Any) -> None:
    """In place: the files of the repository among `deps` become keys of code.json among `params`."""
    code = [dep for dep in stage["deps"] if dep.split("/")[0] in ("attnopt", "stages")]
    keys = [match.expand(key) for dep in code for path, key in KEYS.items() if (match := re.fullmatch(path, dep))]
    stage["params"].append(CommentedMap({CODE.name: [f"stages.{name}", *keys]}))
    stage["deps"] = [dep for dep in stage["deps"] if dep not in code]
    if not stage["deps"]:
        del stage["deps"]
