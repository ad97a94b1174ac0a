"""The one boundary around every gRPC handler: our refusals become statuses with ErrorInfo, everything else INTERNAL
with an incident id.

grpc.aio sends an exception's text to the stranger who caused it; nothing passes here but what was meant to be said.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc

from fleet import status
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.metrics import Counter, Family

Request = TypeVar("Request")
Response = TypeVar("Response")
Context = grpc.aio.ServicerContext[Any, Any]

log = get_logger(__name__)


class Boundary:
    """Runs handlers so that nothing leaks.

    Args:
        refusals: counts refusals by reason and place.
    """

    def __init__(self, refusals: Family[Counter]) -> None:
        self._refusals = refusals

    async def call(self, where: str, context: Context, work: Awaitable[Response]) -> Response:
        """Await `work`; abort the call with the status of whatever it raises."""
        try:
            return await work
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Refusal as refusal:
            await self.refuse(where, context, refusal)
        except Exception as error:  # noqa: BLE001 - the boundary exists for exactly this
            await self.refuse(where, context, incident(where, error))

    async def stream(self, where: str, context: Context, messages: AsyncIterator[Response]) -> AsyncIterator[Response]:
        """Pass `messages` on; abort the call with the status of whatever the iterator raises."""
        try:
            async for message in messages:
                yield message
        except (asyncio.CancelledError, GeneratorExit, grpc.aio.AbortError):
            raise
        except Refusal as refusal:
            await self.refuse(where, context, refusal)
        except Exception as error:  # noqa: BLE001 - as above
            await self.refuse(where, context, incident(where, error))

    async def refuse(self, where: str, context: Context, refusal: Refusal) -> NoReturn:
        """Count and abort."""
        self._refusals.labels(str(refusal.reason), where).inc()
        code, message, trailing = status.encode(refusal)
        await context.abort(code, message, trailing)
        raise AssertionError("abort returned")


def incident(where: str, error: Exception) -> Refusal:
    """Log an unexpected error under a random id, and give the caller only the id."""
    incident_id = secrets.token_hex(6)
    log.error("unexpected_error", where=where, incident=incident_id, exc_info=error)
    return Refusal(
        Reason.INTERNAL,
        f"the server met an error of its own (incident {incident_id}): its log says more under this id",
        metadata={"incident": incident_id},
    )


def peer_address(context: Context) -> str:
    """Address of the caller without its port; empty when it is not an IP connection."""
    kind, _, rest = context.peer().partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    host, _, _ = rest.replace("%5B", "[").replace("%5D", "]").rpartition(":")
    return host.strip("[]")


def require_tls13(context: Context) -> None:
    """gRPC has no setting for TLS 1.3 only, so each call checks (docs/protocol.md, "Listeners").

    Raises:
        Refusal: the connection is older.
    """
    versions = context.auth_context().get("ssl_tls_version", ())
    if b"TLSv1.3" not in tuple(versions):
        raise Refusal(Reason.PROTOCOL_TOO_OLD, "TLS 1.3 is required: update the client's TLS library")


Handler = Callable[[Request, Context], Awaitable[Response]]
