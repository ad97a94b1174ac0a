"""A worker's end of the socket to its supervisor: what it tells goes there, and orders come from there.

A worker that nobody supervises any more ends: its supervisor was killed, and the next one is to find the ports, the
replica ids and the locks free. The kernel tells, by the end of the socket; a thread hears of it though the loop hangs.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable

from fleet.logs import get_logger
from fleet.service_manager import ServiceManager
from fleet_server.stop_request import StopRequest
from fleet_server.workers.plan import HURRY, STOP, STOP_ALL, WorkerSpec

log = get_logger(__name__)

ORPHAN_WITHIN_S = 10.0


class Line:
    """The worker's end, for the life of its process.

    Args:
        spec: as handed over.
        siblings: replica ids of all workers here.
    """

    def __init__(self, spec: WorkerSpec, siblings: frozenset[str]) -> None:
        self._siblings = siblings
        os.set_inheritable(spec.line, False)
        self._socket = socket.socket(fileno=spec.line)
        self.manager = ServiceManager(self._send, spec.watchdog_s)
        self._obeying: tuple[asyncio.AbstractEventLoop, StopRequest] | None = None
        threading.Thread(target=self._listen, name="supervisor", daemon=True).start()

    def obey(self, stopping: StopRequest) -> None:
        """Do from now on what is ordered. On the event loop; before, there is nothing that would have to be ended in
        order."""
        self._obeying = asyncio.get_running_loop(), stopping

    def _send(self, datagram: bytes) -> int:
        return self._socket.send(datagram, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _listen(self) -> None:
        while True:
            try:
                order = self._socket.recv(64)
            except OSError:
                order = b""
            if self._obeying is None:
                os._exit(0 if order else 1)
            loop, stopping = self._obeying
            if order in (STOP, STOP_ALL):
                self._call(loop, stopping.stop, self._siblings if order == STOP_ALL else frozenset())
            elif order == HURRY:
                self._call(loop, stopping.hurry)
            elif not order:
                self._end_alone(loop, stopping)
                return

    def _end_alone(self, loop: asyncio.AbstractEventLoop, stopping: StopRequest) -> None:
        from fleet.process_end import end_within

        log.error("supervisor_gone", what_happens=f"this worker ends within {ORPHAN_WITHIN_S:g} s")
        end_within(ORPHAN_WITHIN_S, 1)
        self._call(loop, stopping.stop, self._siblings)
        self._call(loop, stopping.hurry)

    @staticmethod
    def _call(loop: asyncio.AbstractEventLoop, order: Callable[..., None], *arguments: object) -> None:
        try:
            loop.call_soon_threadsafe(order, *arguments)
        except RuntimeError:
            return  # the loop has closed: it ends already
