"""When workers are started anew, when the whole gives up, and what it is called ready. Pure."""

from __future__ import annotations

import signal
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

STABLE_S = 60.0
"""A worker that lived so long starts its count of failures again."""
CRASH_LOOP = 5
"""So many failures in a row of a worker, with no other one that serves, end the whole."""
DATABASE_AWAY = 4
"""Exit code of a worker whose database did not answer: its fault it is not, and it comes back when that does."""
WATCHDOG_S = 20.0
START_WITHIN_S = 120.0
STOP_WITHIN_S = 90.0
"""For a worker that was told to stop and has not said yet how long that takes."""
SLACK_S = 5.0
"""So much later than it promised a worker is killed."""


class Phase(StrEnum):
    """Life of a worker's process."""

    STARTING = "starting"
    READY = "ready"
    ENDING = "ending"
    GONE = "gone"


@dataclass(slots=True)
class Failures:
    """How often in a row a worker ended badly."""

    in_a_row: int = 0

    def ended(self, code: int, lived_s: float) -> None:
        """One process ended badly.

        Args:
            code: see `exit_code`.
            lived_s: seconds since it was started.
        """
        if lived_s >= STABLE_S:
            self.in_a_row = 0
        if code != DATABASE_AWAY:
            self.in_a_row += 1

    def is_crash_loop(self, others: Collection[Phase]) -> bool:
        """Whether starting it again would only go round. While others serve it is tried at long intervals."""
        return self.in_a_row >= CRASH_LOOP and Phase.READY not in others


def watchdog_s(asked_s: float) -> float:
    """Seconds without a sign of life after which a worker is killed: before the service manager, which waits `asked_s`
    (0 for ever), would kill them all."""
    return min(WATCHDOG_S, 0.75 * asked_s) if asked_s else WATCHDOG_S


def exit_code(wait_status_code: int, *, leaving: bool = False) -> int:
    """Exit code for a worker's: 1 for one that a signal killed (`os.waitstatus_to_exitcode` says that by a negative).

    Args:
        leaving: all end: one that SIGTERM reached before it could take it has ended well.
    """
    if leaving and wait_status_code == -signal.SIGTERM:
        return 0
    return 1 if wait_status_code < 0 else wait_status_code


def describe(code: int) -> str:
    """How a process ended, for a person."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def status_line(phases: Collection[Phase], said: Collection[str]) -> str:
    """One line for a person.

    Args:
        phases: of all workers.
        said: by each that runs.
    """
    ready = sum(phase is Phase.READY for phase in phases)
    return "; ".join([f"{ready} of {len(phases)} workers ready", *said])
