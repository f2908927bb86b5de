"""Fresh processes: what they inherit, and how they end."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnopt.bench.fresh_process import Stopped, in_fresh_process
from attnopt.core.errors import UserError


def patient(_: object) -> float:
    return 60.0


def _surroundings() -> Iterator[tuple[int, int, bool, str]]:
    threads = len(list(Path(f"/proc/{os.getppid()}/task").iterdir()))
    preloaded = {"transformers.models.gpt2.modeling_gpt2", "attnopt.student.files"} <= sys.modules.keys()
    yield os.getpid(), threads, preloaded, Path("/proc/self/oom_score_adj").read_text().strip()


def _threaded_product() -> Iterator[float]:
    import torch

    torch.set_num_threads(2)
    yield float((torch.ones(600, 600) @ torch.ones(600, 600)).mean())


def _mistaken() -> Iterator[int]:
    yield 1
    raise UserError("bench.device: no")


def _slow(seconds: float) -> Iterator[int]:
    yield 1
    time.sleep(seconds)
    yield 2


def test_every_process_is_fresh_from_a_server_that_imported_everything_and_has_one_thread():
    """A fork copies only the forking thread, so a pool in the server would hang its children."""
    found = [next(in_fresh_process(_surroundings, patience=patient)) for _ in range(2)]
    assert len({pid for pid, *_ in found} | {os.getpid()}) == 3
    assert [rest for _, *rest in found] == [[1, True, "1000"]] * 2


def test_threads_work_after_the_fork():
    assert list(in_fresh_process(_threaded_product, patience=patient)) == [600.0]


def test_a_users_mistake_arrives_as_one():
    with pytest.raises(UserError, match=r"bench\.device: no"):
        list(in_fresh_process(_mistaken, patience=patient))


def test_patience_is_between_items():
    items = in_fresh_process(_slow, 60.0, patience=lambda item: 0.5 if item == 1 else 60.0)
    assert next(items) == 1
    with pytest.raises(Stopped, match="over-time"):
        next(items)
    assert list(in_fresh_process(_slow, 0.2, patience=patient)) == [1, 2]
