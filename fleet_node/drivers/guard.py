"""Guard of one program: a small process between the node and what it runs. Started by path, imports no
package.

Nothing that an action starts may outlive the action, not even when the node is killed with SIGKILL, which no
handler in the node can see. So the node holds the write end of the guard's standard input and nobody else
does: when the node is gone, the kernel closes it, and the guard ends the program at once. The guard has one
thread, so preparing the child between fork and exec is safe here; in the node, with its many threads, it
would not be.

    node ──"stop"──────> guard (stdin)      program: own session, stdout and stderr straight to the node
    node <──JSON lines── guard (status fd)

- "stop" or the end of the program: SIGTERM to what is left, after the grace period SIGKILL.
- End of stdin: the node is gone or has given up; SIGKILL at once.
- Where the kernel can (Linux), the guard is the reaper of all descendants, so that a grandchild which moved
  to a session of its own is found and ended too, and the program dies with the guard (PR_SET_PDEATHSIG).
- The program stays a zombie until the end: its process group's number cannot be given to a stranger while
  signals are still sent to it.

Status lines: {"started": pid}, before the program runs; then {"spawn_failed": errno}, or {"exit_code": n} or
{"signal": n}, and at last {"swept": bool}, true when everything that the program started is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import sys
import time
from typing import Any, Final, NoReturn

_CONTROL: Final = 0
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_KILL_POLL_S: Final = 0.02


def main() -> int:
    """Guard one program; arguments: the numbers of the status fd and of the launch fd. Returns an exit
    code.
    """
    status_fd, launch_fd = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(status_fd, False)
    launch = _read_launch(launch_fd)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A service manager signals the whole group at once: the node decides what happens to the program.
        signal.signal(number, signal.SIG_IGN)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wakeup = _wake_on_child()
    pid, failure = _spawn(launch, status_fd)
    if failure:
        _report(status_fd, {"spawn_failed": failure})
        return 0
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)  # the pipes end with the program, not with its guard
    os.dup2(1, 2)
    _Guard(pid, launch, wakeup, status_fd).watch()
    return 0


class _Guard:
    """Watches the program from its start until nothing of it is left."""

    def __init__(self, pid: int, launch: dict[str, Any], wakeup: int, status_fd: int) -> None:
        self._pid = pid
        self._grace_s = float(launch["grace_s"])
        self._kill_limit_s = float(launch["kill_limit_s"])
        self._wakeup = wakeup
        self._status_fd = status_fd
        self._ended = False
        self._kill_at_s: float | None = None  # monotonic; set once SIGTERM went out
        self._poller = select.poll()
        self._poller.register(wakeup, select.POLLIN)
        self._poller.register(_CONTROL, select.POLLIN)

    def watch(self) -> None:
        """Return when the program and all it started are gone, or cannot be made to go."""
        while True:
            self._notice_end()
            if self._ended and not self._others_left():
                break
            if self._ended:
                self._terminate()
            if self._kill_at_s is not None and time.monotonic() >= self._kill_at_s:
                break
            if not self._wait_for_news():
                break
        swept = self._sweep()
        self._notice_end()
        _report(self._status_fd, {"swept": swept})

    def _wait_for_news(self) -> bool:
        """Sleep until a child ends, the node speaks or the grace period is over. False: the node is gone."""
        left_s = None if self._kill_at_s is None else max(0.0, self._kill_at_s - time.monotonic())
        for fd, _event in self._poller.poll(None if left_s is None else left_s * 1000 + 1):
            if fd == self._wakeup:
                with contextlib.suppress(BlockingIOError):
                    os.read(fd, 4096)
            elif not os.read(_CONTROL, 4096):
                return False
            else:
                self._terminate()
        return True

    def _terminate(self) -> None:
        if self._kill_at_s is None:
            self._kill_at_s = time.monotonic() + self._grace_s
            self._signal_all(signal.SIGTERM)

    def _notice_end(self) -> None:
        """Tell the node how the program ended, once, without reaping it."""
        if self._ended:
            return
        result = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if result is not None:
            self._ended = True
            key = "exit_code" if result.si_code == os.CLD_EXITED else "signal"
            _report(self._status_fd, {key: result.si_status})

    def _others_left(self) -> bool:
        """Whether anything but the program itself lives on; as far as this kernel tells."""
        living = False
        for pid in _children():
            if pid != self._pid and os.waitpid(pid, os.WNOHANG) == (0, 0):
                living = True
        return living

    def _signal_all(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, number)
        for pid in _children():
            if pid != self._pid:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)

    def _sweep(self) -> bool:
        """SIGKILL until no child is left; the children of a killed child come to the guard and are next."""
        deadline_s = time.monotonic() + self._kill_limit_s
        while True:
            self._signal_all(signal.SIGKILL)
            self._notice_end()
            if self._ended and not self._others_left():
                os.waitpid(self._pid, 0)  # from here on the group's number may be anybody's: no more group signals
                return _reap_rest(deadline_s)
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(_KILL_POLL_S)


def _reap_rest(deadline_s: float) -> bool:
    """End what the listing of children missed (it may skip one while another exits); wait() does not miss
    any.
    """
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                if time.monotonic() >= deadline_s:
                    return False
                for pid in _children():
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(_KILL_POLL_S)
        except ChildProcessError:
            return True


def _read_launch(fd: int) -> dict[str, Any]:
    """What to start: path, argv, env, cwd, input_fd (or null), grace_s, kill_limit_s."""
    with open(fd, "rb") as file:
        launch: dict[str, Any] = json.load(file)
    if launch["input_fd"] is not None:
        os.set_inheritable(launch["input_fd"], False)
    return launch


def _wake_on_child() -> int:
    """A descriptor that becomes readable when a child ends."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    return read_end


def _spawn(launch: dict[str, Any], status_fd: int) -> tuple[int, int]:
    """Start the program. Returns its pid and 0, or 0 and the errno that exec or its preparation gave."""
    gate_read, gate_write = os.pipe()
    failure_read, failure_write = os.pipe()  # closed by a successful exec
    try:
        pid = os.fork()
    except OSError as error:  # no process is left: nothing ran, which "the guard was lost" would leave open
        return 0, error.errno or errno.EAGAIN
    if pid == 0:
        os.close(gate_write)
        _become(launch, gate_read, failure_write)
    os.close(gate_read)
    os.close(failure_write)
    # The node knows the group before the program can start anything in it: should the guard be killed, the node
    # can still end the group.
    _report(status_fd, {"started": pid})
    with contextlib.suppress(BrokenPipeError):  # somebody killed it already: its end will tell
        os.write(gate_write, b"g")
    os.close(gate_write)
    failure = b"".join(iter(lambda: os.read(failure_read, 64), b""))
    os.close(failure_read)
    if not failure:
        return pid, 0
    os.waitpid(pid, 0)
    return 0, int(failure)


def _become(launch: dict[str, Any], gate_fd: int, failure_fd: int) -> NoReturn:
    """In the child: become the program. Every descriptor but 0, 1 and 2 closes by itself at exec."""
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        # What is ignored or blocked here, or was where the node was started, would stay so in the program.
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if not os.read(gate_fd, 1):  # the guard is dead, perhaps since before the line above
            os._exit(127)
        input_fd = launch["input_fd"]
        os.dup2(os.open(os.devnull, os.O_RDONLY) if input_fd is None else input_fd, 0)
        os.chdir(launch["cwd"])
        os.execve(launch["path"], launch["argv"], launch["env"])  # noqa: S606  a fixed path from the config, no shell
    except OSError as error:
        os.write(failure_fd, str(error.errno or 1).encode())
    finally:
        os._exit(127)


def _prctl(option: int, value: int) -> None:
    """Ask the kernel for what only Linux has; elsewhere the process group and stdin's end have to do."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _children() -> list[int]:
    """Direct children of the guard; empty where the kernel does not list them."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as listing:
            return [int(word) for word in listing.read().split()]
    except OSError:
        return []


def _report(fd: int, status: dict[str, int | bool]) -> None:
    with contextlib.suppress(OSError):  # the node is gone; the sweep goes on
        os.write(fd, json.dumps(status).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
