"""Entry point of `fleetctl`."""

from __future__ import annotations

import contextlib
import os
import sys

from fleet.standard_streams import carry_output
from fleet_server.cli.failures import ExitCode
from fleet_server.cli.root import fleetctl


def main() -> None:
    """Run `fleetctl` with this process's arguments; ends the process with the code from `failures.ExitCode`."""
    # gRPC's own log lines would stand between the person and the sentence that says what is wrong.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        with carry_output():
            fleetctl(prog_name="fleetctl")
    except SystemExit as end:
        if end.code == ExitCode.INTERRUPTED:
            _leave_at_once()
        raise


def _leave_at_once() -> None:
    # A channel waits for the threads of its calls when it is closed, and again when the interpreter finalises it. After
    # Ctrl-C such a thread may never have been started: the wait would have no end.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
