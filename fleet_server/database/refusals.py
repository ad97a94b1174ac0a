"""What callers are told while the database is away."""

from __future__ import annotations

from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet_server.database.dialects import is_away

log = get_logger(__name__)

SHUTTING_DOWN = "the server is shutting down: try again on another replica, or in a moment"


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
        log.warning("database_refused", error=str(error))  # the engine hides parameters
        return away()
    return error


def away() -> Refusal:
    """The database does not answer, or cannot be written."""
    return Refusal(
        Reason.UNAVAILABLE,
        "the server's database does not answer or cannot be written; nothing was changed. Try again in a moment",
        retry_after_s=2.0,
    )
