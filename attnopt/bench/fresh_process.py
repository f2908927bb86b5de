"""Fresh processes at the price of a fork: a server that has imported torch and transformers, and runs nothing itself.

A process reports by yielding. What kills it, or makes it too slow, is an outcome and not a failure.
"""

import contextlib
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any, Literal

from attnopt.core.errors import RunError, UserError

Outcome = Literal["ok", "out-of-memory", "over-time"]

PRELOADED = ["attnopt.cli", "attnopt.bench.preload"]
START_SECONDS = 180.0
"""Allowed for the server's imports, which the first process waits for."""
_ALLOCATION_ERRORS = ("can't allocate memory", "out of memory", "not enough memory", "cannot allocate memory")


class Stopped(Exception):
    """A process ended early, for a reason that is a result."""

    def __init__(self, outcome: Outcome):
        super().__init__(outcome)
        self.outcome = outcome


def start_server() -> None:
    """Start importing in the background; the first call of `fresh` does it otherwise.

    The server computes nothing: a fork copies the forking thread alone, and a process without its OpenMP pool hangs.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def in_fresh_process(
    function: Callable[..., Iterator[Any]], *args: Any, patience: Callable[[Any], float]
) -> Iterator[Any]:
    """What `function(*args)` yields in a process of its own.

    Args:
        patience: seconds allowed from an item (None: the start) to the next.
    Raises:
        Stopped: the process ran out of memory (also when the kernel killed it) or out of time.
        UserError, RuntimeError: what the process raised.
        RunError: it crashed, or did not start.
    """
    start_server()
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, function, args), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(START_SECONDS):
            raise RunError(f"a bench process did not start within {START_SECONDS:.0f} s: the machine is too busy")
        item = _receive(ours, process, START_SECONDS)
        while (item := _receive(ours, process, patience(item))) is not _serve:
            yield item
    finally:
        process.kill()
        process.join()
        ours.close()


def _receive(pipe: Connection, process: Any, max_seconds: float) -> Any:
    """The next item; `_serve` itself stands for the end."""
    if not pipe.poll(max_seconds):
        raise Stopped("over-time")
    try:
        tag, content = pipe.recv()
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGKILL:
            raise Stopped("out-of-memory") from None
        raise RunError(f"a bench process died with exit code {process.exitcode}") from None
    if tag == "stopped":
        raise Stopped(content)
    if tag == "error":
        raise content
    return _serve if tag == "end" else content


def _serve(pipe: Connection, function: Callable[..., Iterator[Any]], args: tuple) -> None:
    with contextlib.suppress(OSError):
        _be_the_first_to_go()
    pipe.send(("item", None))
    try:
        for item in function(*args):
            pipe.send(("item", item))
        pipe.send(("end", None))
    except UserError as error:
        pipe.send(("error", UserError(str(error))))
    except Exception as error:
        if _is_out_of_memory(error):
            pipe.send(("stopped", "out-of-memory"))
        else:
            pipe.send(("error", RuntimeError(f"a bench process failed:\n{traceback.format_exc()}")))


def _be_the_first_to_go() -> None:
    """Where memory runs out, the kernel should kill this process and not its parent."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    told = isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _ALLOCATION_ERRORS)
    return told or isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
