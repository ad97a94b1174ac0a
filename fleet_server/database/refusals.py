"""What callers are told while the database is away, and what the log is: the same for all of them, so not for each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet_server.database.dialects import is_away

log = get_logger(__name__)

SHUTTING_DOWN = "the server is shutting down: try again on another replica, or in a moment"
SAID_EVERY_S = 5.0


class Seldom:
    """What every call would log while the database is away is logged once in `SAID_EVERY_S`. Any thread.

    Args:
        monotonic: seconds.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._said: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def left_out(self, what: str) -> int | None:
        """How often `what` was left out since it was logged last; None when it is to be left out now, too.

        Args:
            what: one of few words.
        """
        with self._lock:
            now_s = self._monotonic()
            due_s, left_out = self._said.get(what, (now_s, 0))
            if now_s < due_s:
                self._said[what] = due_s, left_out + 1
                return None
            self._said[what] = now_s + SAID_EVERY_S, 0
            return left_out


_seldom = Seldom()


class DatabaseLostError(Exception):
    """The connection is gone; when that happened while committing, nobody knows whether the group stands.

    Args:
        cause: what the driver said.
        committing: whether it happened then.
    """

    def __init__(self, cause: Exception, committing: bool) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.committing = committing

    def tell(self, jobs: int) -> None:
        """Log it.

        Args:
            jobs: that it met.
        """
        left_out = 0 if self.committing else _seldom.left_out("lost")
        if left_out is not None:
            error = str(self.cause)
            log.warning("database_lost", jobs=jobs, committing=self.committing, error=error, left_out=left_out)

    def refusal(self) -> Refusal:
        """What callers are told, of whose work nothing, or nobody knows what, is recorded."""
        if not self.committing:
            return away()
        return Refusal(
            Reason.UNAVAILABLE,
            "the database went away while it committed, so this may or may not be recorded. Look before you repeat it;"
            " with the same idempotency key repeating is safe",
            retry_after_s=2.0,
        )


def as_refusal(error: Exception) -> Exception:
    """A database that is away is a refusal that callers may retry; every other error stays what it is."""
    if is_away(error):
        left_out = _seldom.left_out(type(getattr(error, "orig", error)).__name__)
        if left_out is not None:
            log.warning("database_refused", error=str(error), left_out=left_out)  # the engine hides parameters
        return away()
    return error


def away() -> Refusal:
    """The database does not answer, or cannot be written."""
    return Refusal(
        Reason.UNAVAILABLE,
        "the server's database does not answer or cannot be written; nothing was changed. Try again in a moment",
        retry_after_s=2.0,
    )
