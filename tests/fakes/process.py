"""Real processes that tests start, listen to, stop, freeze and kill.

Every process has its own process group and one log file that takes its stdout and stderr as they come.
Waiting is for a line, an exit or a condition; each wakes on the process's own output or end, and no wait is
unbounded.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.fakes.forked import Forked, fork

WAIT_TIMEOUT_S = 20.0
_LOOK_AGAIN_S = 0.05
"""How often `wait_until` looks again when no process says anything: for conditions outside of any output."""


class RunningProcess:
    """One started process. Lines are counted from its start; `wait_line` sees past and coming ones."""

    def __init__(
        self, name: str, popen: subprocess.Popen[str] | Forked, log_path: Path, stirred: threading.Condition
    ) -> None:
        self.name = name
        self.log_path = log_path
        self._popen = popen
        self._stirred = stirred
        self._lines: list[str] = []
        self._output_ended = False
        self._reader = threading.Thread(target=self._read, name=f"log-{name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process's id; also the id of its group."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._popen.poll()

    @property
    def lines(self) -> list[str]:
        """Everything printed so far, a line each."""
        with self._stirred:
            return list(self._lines)

    def tail(self, count: int = 40) -> str:
        """The last lines printed."""
        return "\n".join(self.lines[-count:])

    def wait_line(self, pattern: str, timeout_s: float = WAIT_TIMEOUT_S, after: int = 0) -> re.Match[str]:
        """The first line (from line `after` on) in which `pattern` is found.

        Raises:
            TimeoutError: no such line came in time.
            ChildProcessError: the process ended without it; the text holds its last lines.
        """
        wanted = re.compile(pattern)
        deadline_s = time.monotonic() + timeout_s
        seen = after
        with self._stirred:
            while True:
                for line in self._lines[seen:]:
                    if found := wanted.search(line):
                        return found
                seen = max(seen, len(self._lines))
                if self._output_ended:
                    raise ChildProcessError(self._describe(f"ended without a line like {pattern!r}"))
                if not self._stirred.wait(max(0.0, deadline_s - time.monotonic())):
                    raise TimeoutError(self._describe(f"printed no line like {pattern!r} in {timeout_s:g} s"))

    def wait_exit(self, timeout_s: float = WAIT_TIMEOUT_S) -> int:
        """Its exit code, once it has ended and its output was read to the end.

        Raises:
            TimeoutError: it still runs.
        """
        try:
            exit_code = self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(self._describe(f"still runs after {timeout_s:g} s")) from None
        self._reader.join(timeout_s)
        return exit_code

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone: nothing of this process runs after this returns."""
        self.signal(signal.SIGKILL)
        self._popen.wait(WAIT_TIMEOUT_S)

    def terminate(self) -> None:
        """SIGTERM; does not wait."""
        self.signal(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP: it holds its sockets and does nothing, as a machine that has hung."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT after `freeze`."""
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process alone; nothing happens when it has ended."""
        if self._popen.poll() is None:
            os.kill(self.pid, number)

    def end_group(self) -> None:
        """SIGKILL to its whole group, children included; what teardown does."""
        # A group outlives its leader while a child lives on, and its id stays taken for as long.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait(WAIT_TIMEOUT_S)
        self._reader.join(WAIT_TIMEOUT_S)

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as output, self.log_path.open("a", encoding="utf-8") as log:
            for line in output:
                log.write(line)
                log.flush()
                with self._stirred:
                    self._lines.append(line.rstrip("\n"))
                    self._stirred.notify_all()
        with self._stirred:
            self._output_ended = True
            self._stirred.notify_all()

    def _describe(self, what: str) -> str:
        lines = "\n".join(self._lines[-20:])
        who = f"process {self.name!r} (pid {self.pid}, exit {self._popen.poll()})"
        return f"{who} {what}; it printed last:\n{lines}"


class Processes:
    """Starts processes and ends them all; the `processes` fixture gives one to a test.

    Args:
        log_folder: where `<name>.log` files go; a name started again appends to its file.
    """

    def __init__(self, log_folder: Path) -> None:
        self._log_folder = log_folder
        self._stirred = threading.Condition()
        self.started: list[RunningProcess] = []

    def start(
        self,
        argv: Sequence[str | Path],
        name: str,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: IO[bytes] | int = subprocess.DEVNULL,
    ) -> RunningProcess:
        """Start `argv` in its own group.

        Args:
            argv: program and arguments; never a shell.
            name: for the log file and for messages.
            env: added to this process's environment.
            cwd: working folder.
            stdin: nothing unless given.
        """
        popen = subprocess.Popen(
            [str(each) for each in argv],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
            bufsize=1,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
        return self._keep(name, popen)

    def fork(self, *argv: str | Path, name: str, env: Mapping[str, str] | None = None) -> RunningProcess:
        """As `start_module`, from a process that has imported the product already: it starts in a tenth of the time."""
        return self._keep(name, fork([str(each) for each in argv], {**os.environ, **(env or {})}))

    def _keep(self, name: str, popen: subprocess.Popen[str] | Forked) -> RunningProcess:
        process = RunningProcess(name, popen, self._log_folder / f"{name}.log", self._stirred)
        self.started.append(process)
        return process

    def start_module(
        self, module: str, *args: str | Path, name: str, env: Mapping[str, str] | None = None
    ) -> RunningProcess:
        """Start `python -m module args...` with this interpreter."""
        return self.start([sys.executable, "-m", module, *args], name, env=env)

    def wait_until(self, condition: Callable[[], object], what: str, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """Return once `condition()` is true; it is asked again at each line printed, and at least every 50
        ms.

        Raises:
            TimeoutError: it stayed false; the text names `what` and holds the last lines of each process.
        """
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"not within {timeout_s:g} s: {what}\n{self.tails(10)}")
            with self._stirred:
                self._stirred.wait(_LOOK_AGAIN_S)

    def tails(self, count: int = 40) -> str:
        """The last lines of every process, each under its name, id and exit code."""
        return "\n".join(
            f"--- {each.name} (pid {each.pid}, exit {each.exit_code}), {each.log_path}\n{each.tail(count)}"
            for each in self.started
        )

    def end_all(self) -> None:
        """Kill what is left, newest first."""
        for process in reversed(self.started):
            process.end_group()
