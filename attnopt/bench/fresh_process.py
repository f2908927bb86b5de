"""Fresh processes at the price of a fork: a server imports torch and transformers once, and every process is its fork.

A function reports from its process by yielding. What kills the process, or makes it too slow, is an outcome of the
measurement and no failure of the bench.
"""

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from attnopt.core.errors import RunError, UserError

if TYPE_CHECKING:  # no pydantic before the server has started: this module is what a stage imports first
    from attnopt.records.bench import Outcome

PRELOADED = ["attnopt.cli", "attnopt.bench.preload"]
START_SECONDS = 180.0
"""Allowed for the server's imports, which the first process waits for."""
_ALLOCATION_ERRORS = ("can't allocate memory", "out of memory", "not enough memory", "cannot allocate memory")


class Stopped(Exception):
    """A process ended early, for a reason that is a result."""

    def __init__(self, outcome: "Outcome"):
        super().__init__(outcome)
        self.outcome = outcome


class Message(NamedTuple):
    """What a process sends to its parent.

    Attributes:
        kind: "started" comes first, before any work; "report" brings what the function yielded; "stopped" an outcome;
            "error" an exception to raise. A process that has nothing more to say ends.
    """

    kind: Literal["started", "report", "stopped", "error"]
    content: Any = None


def start_server() -> None:
    """Let the server start importing, in the background; the first call of `in_fresh_process` does it otherwise.

    Call it before your own imports of torch and transformers, which then run at the same time as the server's: the
    first measurement begins seconds earlier. That is why a stage that calls it imports the rest inside its function.
    Further calls do nothing, so one server serves any number of benches in one process.

    The server computes nothing: a fork copies the forking thread alone, and a process without its OpenMP pool hangs.
    Nor does it ask CUDA for its devices, as `torch.cuda.is_available` does unless told to ask NVML: no fork could use
    the GPU then.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    multiprocessing.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


@contextlib.contextmanager
def in_fresh_process(function: Callable[..., Iterator[Any]], *args: Any) -> Iterator["FreshProcess"]:
    """Run `function(*args)`, a generator function, in a process of its own, which is killed when the block ends.

        with in_fresh_process(measure, subject) as process:
            first = process.receive(within=60.0)

    Args:
        function, args: sent to the process, so they must be picklable, and what the function yields too.
    Raises:
        RunError: the process did not start.
    """
    start_server()
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(theirs, function, args), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(START_SECONDS):
            raise RunError(f"a bench process did not start within {START_SECONDS:.0f} s: the machine is too busy")
        started = FreshProcess(process, ours)
        started.receive(START_SECONDS)
        yield started
    finally:
        process.kill()
        process.join()
        ours.close()


class FreshProcess:
    """A process at work, as its parent sees it."""

    def __init__(self, process: Any, pipe: Connection):
        self._process = process
        self._pipe = pipe

    def receive(self, within: float) -> Any:
        """What the function yields next.

        Args:
            within: seconds that it may take, counted from this call.
        Raises:
            Stopped: the process ran out of memory (also when the kernel killed it) or out of time.
            UserError, RuntimeError: what the process raised.
            RunError: it crashed, or ended without another report.
        """
        if not self._pipe.poll(within):
            raise Stopped("over-time")
        try:
            message: Message = self._pipe.recv()
        except EOFError:
            raise self._ended() from None
        if message.kind == "stopped":
            raise Stopped(message.content)
        if message.kind == "error":
            raise message.content
        return message.content

    def _ended(self) -> Exception:
        self._process.join()
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            return Stopped("out-of-memory")
        if code == 0:
            return RunError("a bench process ended without the report that was expected of it")
        return RunError(f"a bench process died with exit code {code}")


def _report(pipe: Connection, function: Callable[..., Iterator[Any]], args: tuple) -> None:
    """The process' own side: send what the function yields, and how it ended where that was early."""
    with contextlib.suppress(OSError):
        _be_the_first_to_go()
    pipe.send(Message("started"))
    try:
        for item in function(*args):
            pipe.send(Message("report", item))
    except UserError as error:
        pipe.send(Message("error", UserError(str(error))))
    except Exception as error:
        if _is_out_of_memory(error):
            pipe.send(Message("stopped", "out-of-memory"))
        else:
            pipe.send(Message("error", RuntimeError(f"a bench process failed:\n{traceback.format_exc()}")))


def _be_the_first_to_go() -> None:
    """Where memory runs out, the kernel should kill this process and not its parent."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    told = isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _ALLOCATION_ERRORS)
    return told or isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
