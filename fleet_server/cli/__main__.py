"""Entry point of `fleetctl`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

from fleet.standard_streams import carry_output
from fleet_server.cli.failures import ExitCode
from fleet_server.cli.root import fleetctl


def main() -> None:
    """Run `fleetctl` with this process's arguments; ends the process with the code from `failures.ExitCode`."""
    # gRPC's own log lines would stand between the person and the sentence that says what is wrong.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    interrupt = _Interrupt()
    try:
        with carry_output():
            fleetctl(prog_name="fleetctl")
    except SystemExit as end:
        if end.code == ExitCode.INTERRUPTED:
            _leave_at_once()
        raise
    except Exception:
        if interrupt.came:
            _leave_at_once()
        raise


class _Interrupt:
    """Remembers Ctrl-C. Python raises it wherever the program is; in the middle of a lock of gRPC's it may come out as
    another exception, which is no less a Ctrl-C."""

    def __init__(self) -> None:
        self.came = False
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        signal.default_int_handler(number, frame)


def _leave_at_once() -> None:
    # A channel waits for the threads of its calls when it is closed, and again when the interpreter finalises it. After
    # Ctrl-C such a thread may never have been started: the wait would have no end.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
