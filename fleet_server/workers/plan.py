"""What a supervisor and its workers agree on. No secret is in it: it stands on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

STOP = b"stop"
STOP_ALL = b"stop all"
HURRY = b"hurry"
"""Orders to a worker: drain and end; the same, and nodes find no other worker here; shorten that."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What one worker is handed, beside the settings.

    Args:
        number: 1 to the number of workers.
        line: descriptor of its socket to the supervisor.
        watchdog_s: seconds without a sign of life after which it is killed.
    """

    number: int
    line: int
    watchdog_s: float

    def show(self) -> str:
        """As it stands on the command line."""
        return f"{self.number}:{self.line}:{self.watchdog_s}"

    @classmethod
    def read(cls, text: str) -> Self:
        """The opposite of `show`.

        Raises:
            ValueError: it is none.
        """
        number, line, watchdog_s = text.split(":")
        return cls(int(number), int(line), float(watchdog_s))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a supervisor does.

    Args:
        count: workers.
        arguments: of `fleet-server run`, for each worker.
        log_level: of its log.
        log_format: likewise.
        probe: where it answers /healthz and /readyz, `host:port`; empty for nowhere.
        locks: descriptors of the lock files that it holds for as long as it lives.
    """

    count: int
    arguments: Sequence[str]
    log_level: str
    log_format: str
    probe: str
    locks: Sequence[int]

    def command_line(self) -> list[str]:
        """Program and arguments that carry it out."""
        return [sys.executable, "-P", "-m", "fleet_server.workers", json.dumps(asdict(self))]

    @classmethod
    def read(cls, text: str) -> Self:
        """The opposite of `command_line`'s last part."""
        return cls(**json.loads(text))


def worker_id(base: str, number: int) -> str:
    """Replica id of a worker: its audit chain carries it over restarts."""
    return f"{base}-{number}"
