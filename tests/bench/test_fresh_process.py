"""Fresh processes: what they inherit, and how they end."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attnopt.bench.fresh_process import Stopped, in_fresh_process
from attnopt.core.errors import RunError, UserError

PATIENT = 60.0


def _surroundings() -> Iterator[tuple[int, int, int, bool, str]]:
    threads = len(list(Path(f"/proc/{os.getppid()}/task").iterdir()))
    preloaded = {"transformers.models.gpt2.modeling_gpt2", "attnopt.student.files"} <= sys.modules.keys()
    yield os.getpid(), os.getppid(), threads, preloaded, Path("/proc/self/oom_score_adj").read_text().strip()


def _threaded_product() -> Iterator[float]:
    import torch

    torch.set_num_threads(2)
    yield float((torch.ones(600, 600) @ torch.ones(600, 600)).mean())


def _servers_environment() -> Iterator[str]:
    yield Path(f"/proc/{os.getppid()}/environ").read_text().replace("\0", "\n")


def _mistaken() -> Iterator[int]:
    yield 1
    raise UserError("bench.device: no")


def _slow(seconds: float) -> Iterator[int]:
    yield 1
    time.sleep(seconds)
    yield 2


def _crashing() -> Iterator[int]:
    yield os._exit(7)


def _killed() -> Iterator[int]:
    yield os.kill(os.getpid(), signal.SIGKILL)


def _first(function: Callable[..., Iterator[Any]], *args: Any) -> Any:
    with in_fresh_process(function, *args) as process:
        return process.receive(PATIENT)


def _both(function: Callable[..., Iterator[Any]], *args: Any) -> list[Any]:
    with in_fresh_process(function, *args) as process:
        return [process.receive(PATIENT), process.receive(PATIENT)]


def test_the_server_never_asks_cuda_for_its_devices_which_would_spoil_it_for_every_fork():
    assert "PYTORCH_NVML_BASED_CUDA_CHECK=1" in _first(_servers_environment).split("\n")


def test_every_process_is_fresh_from_a_server_that_imported_everything_and_has_one_thread():
    """A fork copies only the forking thread, so a pool in the server would hang its children."""
    found = [_first(_surroundings) for _ in range(2)]
    assert len({pid for pid, *_ in found} | {os.getpid()}) == 3
    assert len({server for _, server, *_ in found}) == 1
    assert [rest for _, _, *rest in found] == [[1, True, "1000"]] * 2


def test_threads_work_after_the_fork():
    assert _first(_threaded_product) == 600.0


def test_a_process_that_has_nothing_more_to_report_is_not_waited_for():
    with in_fresh_process(_threaded_product) as process:
        process.receive(PATIENT)
        with pytest.raises(RunError, match="ended without the report"):
            process.receive(PATIENT)


def test_a_process_that_crashes_is_named_with_its_exit_code_and_a_killed_one_ran_out_of_memory():
    with pytest.raises(RunError, match="exit code 7"):
        _first(_crashing)
    with pytest.raises(Stopped, match="out-of-memory"):
        _first(_killed)


def test_a_process_ends_with_its_block():
    with in_fresh_process(_slow, 600.0) as process:
        process.receive(PATIENT)
        pid = process._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_users_mistake_arrives_as_one():
    with pytest.raises(UserError, match=r"bench\.device: no"):
        _both(_mistaken)


@pytest.mark.slow
def test_patience_is_from_one_report_to_the_next():
    with in_fresh_process(_slow, 60.0) as process:
        assert process.receive(PATIENT) == 1
        with pytest.raises(Stopped, match="over-time"):
            process.receive(within=0.5)
    assert _both(_slow, 0.2) == [1, 2]
