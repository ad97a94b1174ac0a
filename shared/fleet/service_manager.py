"""What a daemon tells whoever supervises it: sd_notify(3), for systemd's `Type=notify` and its watchdog.

A worker of `fleet-server run --workers` tells the same to its supervisor, over a socket that it inherits. Own code for
what the libraries do not: docs/adr/0024-sd-notify-is-forty-lines.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, MutableMapping

_NAMES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
STATUS_INTERVAL_S = 5.0
"""How often the status line is renewed; more often where the watchdog asks for it."""


class ServiceManager:
    """Whoever started this process and waits for it; or nobody.

    Args:
        send: takes a datagram, and may fail with OSError, which ends nothing: the daemon serves on. None for nobody.
        watchdog_s: seconds without a sign of life after which this process is killed; 0 for never.
    """

    def __init__(self, send: Callable[[bytes], object] | None = None, watchdog_s: float = 0.0) -> None:
        self._send = send
        self.watchdog_s = watchdog_s if send is not None else 0.0

    @property
    def listens(self) -> bool:
        """Whether there is anybody."""
        return self._send is not None

    def ready(self, status: str) -> None:
        """It serves, or serves again after `reloading`."""
        self._tell("READY=1", _status(status))

    def status(self, status: str) -> None:
        """One line for a person."""
        self._tell(_status(status))

    def reloading(self, status: str) -> None:
        """It begins to load itself anew; `ready` ends that."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", _status(status))

    def stopping(self, status: str) -> None:
        """It ends."""
        self._tell("STOPPING=1", _status(status))

    def extend(self, seconds: float) -> None:
        """What it does now, starting or ending, may take so many seconds more."""
        self._tell(f"EXTEND_TIMEOUT_USEC={max(1, round(seconds * 1e6))}")

    def alive(self) -> None:
        """A sign of life for the watchdog."""
        self._tell("WATCHDOG=1")

    async def run(self, healthy: Callable[[], bool], status: Callable[[], str]) -> None:
        """Renew the status line, and give signs of life at half of what the watchdog waits, until cancelled.

        Args:
            healthy: asked before each sign of life; while it is false there is none.
            status: one line for a person.
        """
        interval_s = min(STATUS_INTERVAL_S, self.watchdog_s / 2) if self.watchdog_s else STATUS_INTERVAL_S
        while True:
            if self.watchdog_s and healthy():
                self.alive()
            self.status(status())
            await asyncio.sleep(interval_s)

    def _tell(self, *lines: str) -> None:
        if self._send is not None:
            with contextlib.suppress(OSError):
                self._send("\n".join(lines).encode())


def from_environment(environment: MutableMapping[str, str] = os.environ) -> ServiceManager:
    """The service manager that the environment names. Its variables are taken away, for no child is to speak for this
    process."""
    address, watchdog_us, watchdog_pid = (environment.pop(name, "") for name in _NAMES)
    if not address.startswith(("/", "@")):
        return ServiceManager()
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    where = f"\0{address[1:]}" if address.startswith("@") else address
    watched = watchdog_us.isascii() and watchdog_us.isdigit() and watchdog_pid in ("", str(os.getpid()))
    return ServiceManager(
        lambda datagram: datagrams.sendto(datagram, where), int(watchdog_us) / 1e6 if watched else 0.0
    )


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())}"
