"""One worker as its supervisor sees it: a process, and what it tells."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet_server.workers import rules
from fleet_server.workers.plan import HURRY, STOP, STOP_ALL, WorkerSpec
from fleet_server.workers.rules import Phase

log = get_logger(__name__)

_LONGEST_DATAGRAM = 4096


class WorkerProcess:
    """One process, from its start to its end.

    Args:
        number: of the worker.
        arguments: of `fleet-server run`.
        watchdog_s: seconds without a sign of life after which it is to be killed.
        clock: for deadlines.
        changed: called when it tells something new.
    """

    def __init__(
        self, number: int, arguments: Sequence[str], watchdog_s: float, clock: Clock, changed: Callable[[], None]
    ) -> None:
        self.number = number
        self.phase = Phase.STARTING
        self.said = "starting"
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """How it ended, as `os.waitstatus_to_exitcode` tells it."""
        self.serving = asyncio.Event()
        self._watchdog_s = watchdog_s
        self._clock = clock
        self._changed = changed
        self._started_s = clock.monotonic()
        self._due_s = self._started_s + rules.START_WITHIN_S
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.setblocking(False)
        with theirs:
            spec = WorkerSpec(number, theirs.fileno(), watchdog_s)
            # A group of its own: Ctrl-C at a terminal reaches the supervisor alone, which passes it on once.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fleet_server", "run", *arguments, "--worker", spec.show()],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        asyncio.get_running_loop().add_reader(self._line, self._hear)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def lived_s(self) -> float:
        """Seconds since it was started."""
        return self._clock.monotonic() - self._started_s

    @property
    def left_s(self) -> float:
        """Seconds until it is due to give a sign of life, to serve or to have ended; below 0 it hangs."""
        return self._due_s - self._clock.monotonic()

    def excuse(self, seconds: float) -> None:
        """Give it so much longer: this process itself stood still, maybe with the whole machine."""
        self._due_s += seconds

    def stop(self, *, all_end: bool = False) -> None:
        """Have it drain and end; told again, it drains on.

        Args:
            all_end: its nodes find no other worker here.
        """
        self._order(STOP_ALL if all_end else STOP)
        if self.phase is not Phase.ENDING:
            self._due_s = self._clock.monotonic() + rules.STOP_WITHIN_S
        self._become(Phase.ENDING)

    def hurry(self) -> None:
        """Have it shorten its drain."""
        self._order(HURRY)

    def kill(self) -> None:
        """SIGKILL; one that a dead disk holds is left by the kernel until that lets go."""
        self._due_s = self._clock.monotonic() + rules.STOP_WITHIN_S
        os.kill(self.pid, signal.SIGKILL)

    def reaped(self, code: int) -> None:
        """The system says that it has ended."""
        self._process.returncode = code  # or Popen would look for a process that is no more
        asyncio.get_running_loop().remove_reader(self._line)
        self._hear()  # its last words
        self._line.close()
        self._become(Phase.GONE)
        self.ended.set_result(code)

    def _order(self, order: bytes) -> None:
        with contextlib.suppress(OSError):
            self._line.send(order)

    def _hear(self) -> None:
        while True:
            try:
                datagram = self._line.recv(_LONGEST_DATAGRAM)
            except OSError:
                return
            if not datagram:
                asyncio.get_running_loop().remove_reader(self._line)
                return
            for line in datagram.decode(errors="replace").splitlines():
                self._take(*line.partition("=")[::2])

    def _take(self, name: str, value: str) -> None:
        now_s = self._clock.monotonic()
        if name == "STATUS":
            self.said = f"{self.number}: {value}"
            self._changed()
        elif name == "EXTEND_TIMEOUT_USEC" and self.phase is not Phase.READY:
            self._due_s = now_s + float(value) / 1e6 + rules.SLACK_S
        elif name == "STOPPING":
            if self.phase is Phase.READY:  # by an operator's order
                self._due_s = now_s + rules.STOP_WITHIN_S
            self._become(Phase.ENDING)
        elif name == "READY" and self.phase is Phase.STARTING:
            self._due_s = now_s + self._watchdog_s
            self.serving.set()
            self._become(Phase.READY)
        elif name == "WATCHDOG" and self.phase is Phase.READY:
            self._due_s = now_s + self._watchdog_s

    def _become(self, phase: Phase) -> None:
        if phase is not self.phase:
            self.phase = phase
            self._changed()
