"""systemd's end of sd_notify(3): a real datagram socket, which keeps what it is told."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

WAIT_TIMEOUT_S = 20.0


class Told:
    """What one process tells, line by line.

    Args:
        address: a path, or a name in the abstract namespace behind `@`.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._stirred = threading.Condition()
        self._lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def lines(self) -> list[str]:
        """All so far."""
        with self._stirred:
            return list(self._lines)

    def wait(self, beginning: str, count: int = 1) -> str:
        """The `count`th line that begins so.

        Raises:
            TimeoutError: it did not come.
        """
        deadline_s = time.monotonic() + WAIT_TIMEOUT_S
        with self._stirred:
            while True:
                found = [line for line in self._lines if line.startswith(beginning)]
                if len(found) >= count:
                    return found[count - 1]
                if not self._stirred.wait(max(0.0, deadline_s - time.monotonic())):
                    raise TimeoutError(f"no line {beginning!r} came {count} times: {self._lines}")

    def close(self) -> None:
        """Hear no more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while datagram := self._socket.recv(4096):
                with self._stirred:
                    self._lines += datagram.decode().splitlines()
                    self._stirred.notify_all()


@contextlib.contextmanager
def service_manager(folder: Path, name: str = "notify") -> Iterator[Told]:
    """One that listens at a path in `folder`."""
    told = Told(str(folder / name))
    try:
        yield told
    finally:
        told.close()
