"""dvc.lock of two machines: every stage as the side left it that ran it."""

from pathlib import Path

import pytest

from attnopt.core.errors import UserError
from attnopt.tools.lock import merge_lock
from attnopt.tools.study import yaml_writer


def lock(path: Path, **stages: str) -> Path:
    content = {"schema": "2.0", "stages": {name: {"cmd": name, "outs": [{"md5": of}]} for name, of in stages.items()}}
    with path.open("w") as file:
        yaml_writer().dump(content, file)
    return path


def test_a_stage_is_the_side_s_that_ran_it_and_left_out_where_both_did(tmp_path: Path) -> None:
    base = lock(tmp_path / "base", data="0", a="0", b="0", both="0", gone="0")
    ours = lock(tmp_path / "ours", data="0", a="1", b="0", both="1", gone="0", new="1", same="1")
    theirs = lock(tmp_path / "theirs", data="0", a="0", b="2", both="2", other="2", same="1")
    assert merge_lock(base, ours, theirs) == ["both"]
    merged = yaml_writer().load(ours.read_text())["stages"]
    found = {name: stage["outs"][0]["md5"] for name, stage in merged.items()}
    assert found == {"data": "0", "a": "1", "b": "2", "new": "1", "other": "2", "same": "1"}


def test_where_there_was_no_lock_each_side_adds_its_own(tmp_path: Path) -> None:
    (tmp_path / "base").write_text("")
    ours = lock(tmp_path / "ours", a="1")
    assert merge_lock(tmp_path / "base", ours, lock(tmp_path / "theirs", b="2")) == []
    assert list(yaml_writer().load(ours.read_text())["stages"]) == ["a", "b"]


def test_what_is_no_lock_is_refused_and_ours_left_as_it_is(tmp_path: Path) -> None:
    base, ours = lock(tmp_path / "base"), lock(tmp_path / "ours", a="1")
    before = ours.read_text()
    for text in ("stages: [", "stages:", "- 1", "<<<<<<< ours"):
        (tmp_path / "theirs").write_text(text)
        with pytest.raises(UserError, match=r"theirs is no dvc.lock: it has no stages"):
            merge_lock(base, ours, tmp_path / "theirs")
    assert ours.read_text() == before
