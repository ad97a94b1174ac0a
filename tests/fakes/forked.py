"""Programs of the product that need not import it first: a process that has, one for each test worker, forks them.

Nothing else tells them from programs that were started: each has its session, its environment, its output and its end.
"""

import functools
import json
import os
import select
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.fakes.forker import MOST_BYTES

ROOT = Path(__file__).parents[2]


class Forked:
    """What `subprocess.Popen` is for a started process.

    Args:
        pid: of the process.
        output: what it prints.
        end: its exit code comes here.
    """

    def __init__(self, pid: int, output: IO[str], end: int) -> None:
        self.pid = pid
        self.stdout = output
        self._end = end
        weakref.finalize(self, os.close, end)
        self._code: int | None = None
        self._turn = threading.Lock()

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        with self._turn:
            if self._code is None and self._is_told(0):
                said = os.read(self._end, 16)
                assert said, "the forker is gone"
                self._code = int(said)
            return self._code

    def wait(self, timeout_s: float) -> int:
        """Its exit code, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        self._is_told(timeout_s)  # or it is at its end: another thread has read it
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout_s)
        return code

    def _is_told(self, timeout_s: float) -> bool:
        told = select.poll()
        told.register(self._end, select.POLLIN)
        return bool(told.poll(timeout_s * 1000))


class _Forkery:
    """This process's forker; it ends with this process, which alone holds the socket to it."""

    def __init__(self) -> None:
        self._asking, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._turn = threading.Lock()
        with asked:
            subprocess.Popen(
                [sys.executable, "-m", "tests.fakes.forker", str(asked.fileno())],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "GRPC_VERBOSITY": "NONE"},
                cwd=ROOT,
                pass_fds=[asked.fileno()],
                start_new_session=True,
            )

    def fork(self, argv: Sequence[str], env: Mapping[str, str], errors: str) -> Forked:
        output, said = os.pipe()
        end, told = os.pipe()
        packet = json.dumps({"argv": argv, "env": dict(env), "cwd": str(Path.cwd()), "errors": errors}).encode()
        assert len(packet) <= MOST_BYTES
        with self._turn:
            socket.send_fds(self._asking, [packet], [said, told])
            answer = self._asking.recv(16)
        os.close(said)
        os.close(told)
        assert answer, "the forker is gone"
        text = open(output, encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115 - who reads closes
        return Forked(int(answer), text, end)


@functools.cache
def _forkery() -> _Forkery:
    return _Forkery()


def fork(argv: Sequence[str], env: Mapping[str, str], errors: str = "") -> Forked:
    """Start `python -m` with these arguments, in this environment.

    Args:
        argv: a module and its arguments.
        env: all of it.
        errors: a file that takes standard error; it comes with the output unless given.
    """
    return _forkery().fork(argv, env, errors)
