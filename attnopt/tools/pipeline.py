"""The pipeline of a study that stands alone: the repository's own dvc.yaml, with code.json in place of source files."""

import io
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from attnopt.core.files import sha256
from attnopt.tools.installed import CODE
from attnopt.tools.shipped import shipped
from attnopt.tools.study import yaml_writer

ASSETS, OWN_KIND, ALL_KINDS = "attnopt/assets/", "attnopt/mechanisms/${item}.py", "attnopt/mechanisms"
MARK = "# pipeline "
HEAD = """\
{mark}{digest}, written by `attnopt init`; `attnopt init --pipeline .` writes it anew for another version of attnopt.
# The stage `code` looks what is installed and what lies in mechanisms/; the others name what they run of it, so that
# a new version, or a change to a mechanism of your own, runs again what changed.
# Outputs that `persist` carry a key of all that they are a function of: what still holds is kept.
"""


def study_pipeline() -> str:
    """The text of a study's dvc.yaml."""
    content = yaml_writer().load(shipped("dvc.yaml").read_text(encoding="utf-8"))
    content.ca.comment = None
    stages = content["stages"]
    for name, stage in stages.items():
        _without_source_files(name, stage["do"] if "do" in stage else stage)
    stages.insert(0, "code", _code_stage())
    text = io.StringIO()
    yaml_writer().dump(content, text)
    return HEAD.format(mark=MARK, digest=_digest(text.getvalue())) + text.getvalue()


def is_current(dvc_yaml: str) -> bool:
    """Whether a study's dvc.yaml was written for this version's pipeline, whatever has been changed in it since."""
    first = dvc_yaml.split("\n", 1)[0]
    return not first.startswith(MARK) or first == study_pipeline().split("\n", 1)[0]


def _digest(text: str) -> str:
    return sha256(text)[:12]


def _code_stage() -> CommentedMap:
    outs = CommentedSeq([CommentedMap({CODE.name: CommentedMap({"cache": False})})])
    stage = CommentedMap({"cmd": "attnopt code", "always_changed": True, "deps": ["mechanisms"], "outs": outs})
    return stage


def _without_source_files(name: str, stage: Any) -> None:
    """In place: the files of the repository among `deps` become keys of code.json among `params`."""
    code = [dep for dep in stage["deps"] if dep.split("/")[0] in ("attnopt", "stages")]
    keys = [f"stages.{name}"]
    keys += ["mechanisms.${item}"] if OWN_KIND in code else []
    keys += ["mechanisms"] if ALL_KINDS in code else []
    keys += [f"assets.{dep.removeprefix(ASSETS)}" for dep in code if dep.startswith(ASSETS)]
    stage["params"].append(CommentedMap({CODE.name: keys}))
    rest = [dep for dep in stage["deps"] if dep not in code]
    if rest:
        stage["deps"] = rest
    else:
        del stage["deps"]
