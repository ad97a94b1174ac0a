"""A process that has imported the product, and forks one of itself for each program that is asked of it.

`python -m tests.fakes.forker FD`: FD is a socket of packets. Each request brings along where the new process writes and
where its exit code goes, and is answered with its id. It ends once nobody holds the other end of the socket.
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
from typing import Any, NoReturn

IMPORTED = ("fleet_server.bootstrap", "fleet_server.daemon", "fleet_node.cli.run", "fleet_node.app")
"""What nearly every program of the product imports sooner or later; none of it starts a thread."""
MOST_BYTES = 1 << 20
"""Of a request."""


class Forker:
    """Forks, and says of each child how it ended.

    Args:
        asked: where requests come from.
    """

    def __init__(self, asked: socket.socket) -> None:
        self._asked = asked
        self._ends: dict[int, int] = {}
        """Where the exit code of each child goes, by its id."""

    def run(self) -> None:
        """Until nobody asks any more."""
        woken, wake = socket.socketpair()
        for each in (woken, wake):
            each.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        while True:
            ready, _, _ = select.select([self._asked, woken], [], [])
            if woken in ready:
                with contextlib.suppress(BlockingIOError):
                    woken.recv(MOST_BYTES)
                self._reap()
            if self._asked in ready and not self._answer():
                return

    def _answer(self) -> bool:
        packet, fds, _, _ = socket.recv_fds(self._asked, MOST_BYTES, 2)
        if not packet:
            return False
        request: dict[str, Any] = json.loads(packet)
        output, end = fds
        pid = os.fork()
        if pid == 0:
            os.close(end)
            _become(request, output)
        os.close(output)
        self._ends[pid] = end
        self._asked.send(str(pid).encode())
        return True

    def _reap(self) -> None:
        for pid, end in list(self._ends.items()):
            reaped, status = os.waitpid(pid, os.WNOHANG)
            if reaped:
                del self._ends[pid]
                with contextlib.suppress(BrokenPipeError):  # nobody waits for it
                    os.write(end, str(os.waitstatus_to_exitcode(status)).encode())
                os.close(end)


def _become(request: dict[str, Any], output: int) -> NoReturn:
    """Be what was asked for, as if this process had just been started as `python -m MODULE ARGUMENT…`."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    errors = os.open(request["errors"], os.O_WRONLY | os.O_APPEND) if request["errors"] else output
    for source, target in ((nothing, 0), (output, 1), (errors, 2)):
        os.dup2(source, target)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.closerange(3, max(int(each) for each in os.listdir("/proc/self/fd")) + 1)
    sys.stdout = sys.__stdout__ = _text(1)
    sys.stderr = sys.__stderr__ = _text(2)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.path[:0] = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    module, *arguments = request["argv"]
    sys.argv = [module, *arguments]
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # what the interpreter does when it reaches the top
        sys.excepthook(*sys.exc_info())
        code = 1
    _end(code)


def _text(fd: int) -> io.TextIOWrapper:
    """What Python makes of it when it starts unbuffered; what it made before knows the file that was there then."""
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)  # type: ignore[arg-type]


def _end(code: object) -> NoReturn:
    """As the interpreter does with what a program exits with: it waits for threads, and calls who asked for that. Only
    what it then takes apart stays; the product's daemons leave that out as well."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # a child that collects does not touch, and so copy, what it shares
    asked = socket.socket(fileno=int(sys.argv[1]))
    Forker(asked).run()
