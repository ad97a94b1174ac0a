"""The server as a process of its own: its event loop, its log, and its end, whatever hangs."""

from __future__ import annotations

import uvloop

from fleet.process_end import end_within, keep_grpc_up
from fleet.service_manager import ServiceManager
from fleet_server.allocator import map_large_buffers
from fleet_server.app import Server
from fleet_server.certificates import ServerCertificates
from fleet_server.config import Settings
from fleet_server.observability import logging as server_logging
from fleet_server.stop_request import StopRequest
from fleet_server.trust.secrets import Secrets
from fleet_server.workers.line import Line

FAILED = 1
"""Exit code of a server that failed while it ran, or that something kept from ending in time."""


def serve(
    settings: Settings,
    secrets: Secrets,
    certificates: ServerCertificates,
    manager: ServiceManager,
    *,
    place: str,
    line: Line | None = None,
) -> int:
    """Run a server until it ends; the process's exit code.

    Args:
        settings: validated.
        secrets: derived from the secret encryption key.
        certificates: the server's TLS.
        manager: whoever started this process.
        place: of the data folder that this process has locked.
        line: a worker's to its supervisor.
    """

    def be_gone(seconds: float) -> None:
        end_within(seconds, FAILED)
        manager.extend(seconds)

    async def run() -> int:
        keep_grpc_up()
        stopping = StopRequest(signals_shorten=line is None)
        if line is not None:
            line.obey(stopping)
        server = Server(
            settings, secrets, certificates, end_within=be_gone, manager=manager, stopping=stopping, place=place
        )
        server_logging.configure(settings.log_level, log_format=settings.log_format, replica_id=server.replica_id)
        return await server.run()

    map_large_buffers()
    return uvloop.run(run())
