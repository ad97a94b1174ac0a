"""`fleet-server run`, in which something hangs once it is told to stop, on the event loop's own thread.

What hangs is given up after a second.
"""

import sys
import threading

from fleet_server import leaving
from fleet_server.__main__ import main
from fleet_server.telemetry.service import TelemetryService


def hang(_: TelemetryService) -> None:
    """Never return."""
    threading.Event().wait()


if __name__ == "__main__":
    leaving.LEAVE_WITHIN_S = 1.0
    TelemetryService.close = hang  # type: ignore[method-assign]
    main(args=sys.argv[1:], prog_name="fleet-server")
