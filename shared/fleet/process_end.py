"""How a daemon ends.

grpc.aio's teardown races with its own poller thread (grpc/grpc#43364, grpc/grpc#22365): now and then an orderly stop,
with everything written and said, ended with SIGSEGV, and a supervisor took it for a crash.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading

import grpc.aio


def keep_grpc_up() -> None:
    """Call once, on the loop, before the first channel or server: grpc.aio then stays up until the process ends."""
    grpc.aio.init_grpc_aio()


def end_without_teardown(code: int) -> None:
    """Have this process end with `code` once its main thread has returned, without taking the interpreter apart.

    Call it last, when nothing is left to be closed.
    """
    atexit.register(_leave, code)  # the last that is registered is the first that is called


def end_within(seconds: float, code: int) -> None:
    """Have this process end with `code` after `seconds`, unless it has ended by then, whatever hangs.

    The interpreter waits at its end for every worker thread, and one that a dead disk or a driver holds in a call never
    comes back: a supervisor would wait with it, and start nothing anew.
    """
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()


def _leave(code: int) -> None:
    atexit.unregister(_leave)
    atexit._run_exitfuncs()  # everybody else's
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue  # a closed pipe: nobody reads
    os._exit(code)
