"""Runs one program under its guard and collects what it prints, within time and size limits.

The guard (guard.py) sees to it that nothing outlives the action or the node. This side keeps the pipes
drained, so that a program which prints more than the limit is cut short in the report and not blocked in a
write.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO, Any, Final

from typing_extensions import override

_GUARD: Final = str(Path(__file__).with_name("guard.py"))
KILL_LIMIT_S: Final = 5.0
"""How long the guard keeps killing: a process that the kernel holds in a system call does not die sooner."""

_MAX_STATUS_BYTES: Final = 4096
_DRAIN_LIMIT_S: Final = 2.0
"""How long output may still come after the guard has swept: only a process that escaped it holds a pipe
open.
"""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start, and its limits.

    Args:
        path: absolute path of the program.
        args: arguments after the program's own name.
        env: the whole environment.
        cwd: working directory.
        stdin: what the program reads; None: nothing.
        grace_s: seconds between SIGTERM and SIGKILL.
        max_stdout_bytes: how much of its standard output to keep.
        max_stderr_bytes: the same for standard error.
    """

    path: str
    args: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: str
    stdin: bytes | None = field(repr=False)
    grace_s: float
    max_stdout_bytes: int
    max_stderr_bytes: int


class Stopped(Enum):
    """Why the program was told to end before it ended by itself."""

    TIMEOUT = "TIMEOUT"
    ASKED = "ASKED"


@dataclass(frozen=True, slots=True)
class Captured:
    """The beginning of one output stream, and how long the whole was."""

    kept: bytes = b""
    total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended. One of exit_code, signal and spawn_errno is set; none when the guard itself was lost.

    Args:
        stdout: what it printed.
        stderr: what it printed to standard error.
        exit_code: of a program that exited.
        signal: number of the signal that ended it.
        spawn_errno: why it could not be started.
        stopped: set when it was told to end before it had ended.
        swept: nothing that it started is left.
    """

    stdout: Captured
    stderr: Captured
    exit_code: int | None = None
    signal: int | None = None
    spawn_errno: int | None = None
    stopped: Stopped | None = None
    swept: bool = False


async def run_guarded(launch: Launch, *, stop: asyncio.Event, timeout_s: float) -> Ended:
    """Run a program to its end, or to the end of the patience with it.

    Returns within timeout_s + grace_s + KILL_LIMIT_S and a little, whatever the program does. When this
    coroutine is cancelled, the program and all it started are killed.

    Raises:
        OSError: the guard itself could not be started (descriptors, processes or memory are used up).
    """
    guard = _start_guard(launch)
    try:
        stdout = await guard.listen(guard.stdout, launch.max_stdout_bytes)
        stderr = await guard.listen(guard.stderr, launch.max_stderr_bytes)
        status = await guard.listen(guard.status, _MAX_STATUS_BYTES)
        stopped = await _wait_ended(guard, status, stop, timeout_s, launch.grace_s)
        news = _news(status)
        if "started" in news and not news.keys() & {"swept", "spawn_failed"}:
            _kill_group(news["started"])
        await asyncio.wait({stdout.ended, stderr.ended}, timeout=_DRAIN_LIMIT_S)
    finally:
        await guard.let_go()
    return Ended(
        stdout=stdout.captured(),
        stderr=stderr.captured(),
        exit_code=news.get("exit_code"),
        signal=news.get("signal"),
        spawn_errno=news.get("spawn_failed"),
        stopped=stopped,
        swept=bool(news.get("swept", False)),
    )


async def _wait_ended(
    guard: _Guard, status: _Collector, stop: asyncio.Event, timeout_s: float, grace_s: float
) -> Stopped | None:
    """Wait until the guard has swept; tell it to stop when asked or out of time. Returns why it was told."""
    asked = asyncio.create_task(stop.wait())
    news_or_stop: set[asyncio.Future[Any]] = {status.ended, asked}
    try:
        await asyncio.wait(news_or_stop, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        asked.cancel()
    if status.ended.done():
        return None
    ended_by_itself = bool(_news(status).keys() & {"exit_code", "signal"})
    guard.tell_stop()
    await asyncio.wait({status.ended}, timeout=grace_s + KILL_LIMIT_S + 1)
    if ended_by_itself:  # only what it left behind was still being ended
        return None
    return Stopped.ASKED if stop.is_set() else Stopped.TIMEOUT


def _kill_group(started_pid: int) -> None:
    """End the group of a program whose guard was killed from outside. The program itself died with the guard.

    The number was the program's a moment ago: too short for the kernel to have gone once round all numbers.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(started_pid, signal.SIGKILL)


class _Collector(asyncio.Protocol):
    """Keeps the beginning of what comes through a pipe and counts the rest, so that the writer never
    blocks.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept = bytearray()
        self._total_bytes = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @override
    def data_received(self, data: bytes) -> None:
        self._total_bytes += len(data)
        self._kept += data[: self._max_bytes - len(self._kept)]

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def captured(self) -> Captured:
        return Captured(bytes(self._kept), self._total_bytes)


class _Guard:
    """The guard's process and the node's ends of its pipes."""

    def __init__(self, process: subprocess.Popen[bytes], status: IO[bytes]) -> None:
        assert process.stdin and process.stdout and process.stderr  # noqa: S101  all three are pipes
        self._process = process
        self._control = process.stdin
        self.stdout = process.stdout
        self.stderr = process.stderr
        self.status = status
        self._unheard = [self.stdout, self.stderr, self.status]
        self._transports: list[asyncio.ReadTransport] = []

    async def listen(self, pipe: IO[bytes], max_bytes: int) -> _Collector:
        collector = _Collector(max_bytes)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: collector, pipe)
        self._unheard.remove(pipe)  # the transport closes it
        self._transports.append(transport)
        return collector

    def tell_stop(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._control.write(b"stop\n")

    async def let_go(self) -> None:
        """Close every pipe, which makes the guard kill what is left, and reap the guard."""
        self._control.close()
        for transport in self._transports:
            transport.close()
        for pipe in self._unheard:
            pipe.close()
        try:
            await asyncio.to_thread(self._process.wait, KILL_LIMIT_S + 1)
        except subprocess.TimeoutExpired:
            self._process.kill()


def _start_guard(launch: Launch) -> _Guard:
    """Start the guard, as the node's user, with an empty environment and no descriptor but those named
    here.
    """
    status_read, status_write = os.pipe()
    with contextlib.ExitStack() as passed, contextlib.ExitStack() as kept:
        status = kept.enter_context(open(status_read, "rb", buffering=0))
        passed.enter_context(open(status_write, "wb", buffering=0))
        descriptors = [status_write]
        input_fd = None
        if launch.stdin is not None:
            input_fd = passed.enter_context(_memory_file(launch.stdin))
            descriptors.append(input_fd)
        # Not in argv, where every user of the machine could read it before the program even runs.
        order_fd = passed.enter_context(_memory_file(_encode(launch, input_fd)))
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", _GUARD, str(status_write), str(order_fd)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[*descriptors, order_fd],
            env={},
            cwd="/",
            start_new_session=True,
        )
        kept.pop_all()
    return _Guard(process, status)


def _encode(launch: Launch, input_fd: int | None) -> bytes:
    order = {
        "path": launch.path,
        "argv": [launch.path, *launch.args],
        "env": dict(launch.env),
        "cwd": launch.cwd,
        "input_fd": input_fd,
        "grace_s": launch.grace_s,
        "kill_limit_s": KILL_LIMIT_S,
    }
    return json.dumps(order).encode()


@contextlib.contextmanager
def _memory_file(data: bytes) -> Iterator[int]:
    """The descriptor of a nameless file at its beginning; in memory where the kernel can: it may be
    secret.
    """
    with open(os.memfd_create("fleet-exec"), "w+b") if sys.platform == "linux" else tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        file.seek(0)
        yield file.fileno()


def _news(status: _Collector) -> dict[str, Any]:
    """All that the guard has said so far; its lines are short and whole."""
    news: dict[str, Any] = {}
    for line in status.captured().kept.splitlines():
        news.update(json.loads(line))
    return news
