"""The one boundary around every gRPC handler: our refusals become statuses with ErrorInfo, everything else INTERNAL
with an incident id.

grpc.aio sends an exception's text to the stranger who caused it; nothing passes here but what was meant to be said.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message

from fleet import status
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.metrics import Counter as MetricCounter
from fleet.metrics import Family

Request = TypeVar("Request")
Response = TypeVar("Response")
Context = grpc.aio.ServicerContext[Any, Any]

log = get_logger(__name__)

MAX_METADATA_BYTES = 16 * 1024
_LOOKS = 5
"""At a request that is not there yet, while its caller counts as prompt."""


class Boundary:
    """Runs handlers so that nothing leaks.

    Args:
        refusals: counts refusals by reason and place.
    """

    def __init__(self, refusals: Family[MetricCounter]) -> None:
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


class RequestReader:
    """Reads the one message of a call, which a stranger may have made.

    gRPC calls a handler of its unary kind once the message is whole, and waits for the rest of one for ever: calls that
    are never finished would keep the listener's largest message each in memory, eight a connection. So such calls are
    registered as streams, which is the same on the wire, and are ours from their first byte. Whoever is not prompt,
    which a request of a few hundred bytes is on any line, needs one of a few places, and keeps it for a few seconds.
    When all are taken the newest caller gets the oldest place of the address that holds most, unless its own does.

    Args:
        prompt_s: so long nobody is counted.
        slow_s: so long a place is kept.
        places: for slow callers.
    """

    def __init__(self, *, prompt_s: float = 0.25, slow_s: float = 9.75, places: int = 32) -> None:
        self._prompt_s = prompt_s
        self._slow_s = slow_s
        self._places = places
        self._slow: dict[asyncio.Future[None], str] = {}  # set when its place is wanted by another; the oldest first

    async def read(self, context: Context) -> Any:
        """The message as its deserializer made it.

        Raises:
            Refusal: MALFORMED when it does not come in time, or not at all, or with too much metadata; OVERLOADED when
                all places are taken.
        """
        check_metadata(context)
        reading = asyncio.create_task(read_message(context))  # never cancelled: the abort ends it (grpc/grpc#43360)
        if not await self._is_prompt(reading):
            with self._place(network_of(peer_address(context))) as wanted:
                if not await _done_within(self._slow_s, reading, wanted):
                    raise Refusal(Reason.MALFORMED, "the request did not arrive in time: look at the line")
                if not reading.done():
                    raise _too_slow()
        message = reading.result()
        if message is None:
            raise Refusal(Reason.MALFORMED, "the call ended before its request")
        return message

    async def _is_prompt(self, reading: asyncio.Task[Any]) -> bool:
        # In pieces: a loop that lags would find the time over before it has looked at what came long since.
        for _ in range(_LOOKS):
            if await _done_within(self._prompt_s / _LOOKS, reading):
                return True
        return False

    @contextmanager
    def _place(self, network: str) -> Iterator[asyncio.Future[None]]:
        if len(self._slow) >= self._places:
            self._make_room(network)
        wanted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._slow[wanted] = network
        try:
            yield wanted
        finally:
            self._slow.pop(wanted, None)

    def _make_room(self, network: str) -> None:
        held = Counter(self._slow.values())
        crowd, most = held.most_common(1)[0]
        if held[network] + 1 >= most:
            raise _too_slow()
        oldest = next(wanted for wanted, whose in self._slow.items() if whose == crowd)
        del self._slow[oldest]
        oldest.set_result(None)


def check_metadata(context: Context) -> None:
    """gRPC hands over up to 16 MiB, whatever `grpc.max_metadata_size` says: no call that waits must keep them.

    Raises:
        Refusal: MALFORMED.
    """
    size = sum(len(key) + len(value) for key, value in context.invocation_metadata() or ())
    if size > MAX_METADATA_BYTES:
        raise Refusal(
            Reason.MALFORMED, f"the call has {size} bytes of metadata; at most {MAX_METADATA_BYTES} are taken"
        )


def _too_slow() -> Refusal:
    return Refusal(Reason.OVERLOADED, "too many requests are on their way: try again", retry_after_s=5.0)


async def read_message(context: Context) -> Any | None:
    """The next message of a stream; None at EOF or once the call is over. Never cancel it (grpc/grpc#43360)."""
    try:
        message: Any = await context.read()
    except (grpc.aio.BaseError, grpc.aio.AioRpcError):
        return None  # the call ended under the read, or its server: the same as EOF, which proves nothing either
    return None if message is grpc.aio.EOF else message


async def _done_within(seconds: float, *any_of: asyncio.Future[Any]) -> bool:
    done, _ = await asyncio.wait(any_of, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    return bool(done)


def bounded_deserializer(method: MethodDescriptor, max_bytes: int) -> Callable[[bytes], Message | Refusal]:
    """Parses requests of a method; what is too large is not looked at. Its handler raises the refusal."""
    message_class = message_factory.GetMessageClass(method.input_type)

    def deserialize(raw: bytes) -> Message | Refusal:
        if len(raw) > max_bytes:
            return Refusal(Reason.FRAME_TOO_LARGE, f"the request has {len(raw)} bytes; at most {max_bytes} are taken")
        try:
            return message_class.FromString(raw)
        except DecodeError:
            return Refusal(Reason.MALFORMED, f"the request is no {method.input_type.name}")

    return deserialize


def bearer_token(context: Context) -> str:
    """The token in the call's metadata; empty when it has none. Nothing of the request is read for it."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str) and value.startswith("Bearer "):
            return value.removeprefix("Bearer ")
    return ""


def peer_address(context: Context) -> str:
    """Address of the caller without its port; empty when it is not an IP connection."""
    kind, _, rest = context.peer().partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    host, _, _ = rest.replace("%5B", "[").replace("%5D", "]").rpartition(":")
    return host.strip("[]")


def network_of(address: str) -> str:
    """What shares a bucket: an IPv4 address, or the /64 of an IPv6 one, for whoever has one has 2^64."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((parsed, 64), strict=False))
    return str(parsed)


def peer_certificate(context: Context) -> bytes:
    """The client certificate (PEM) that TLS verified; empty on a listener that asks for none."""
    shown: tuple[bytes, ...] = tuple(context.auth_context().get("x509_pem_cert", ()))
    return shown[0] if shown else b""


def require_tls13(context: Context) -> None:
    """gRPC has no setting for TLS 1.3 only, so each call checks (docs/protocol.md, "Listeners").

    Raises:
        Refusal: the connection is older.
    """
    versions = context.auth_context().get("ssl_tls_version", ())
    if b"TLSv1.3" not in tuple(versions):
        raise Refusal(Reason.PROTOCOL_TOO_OLD, "TLS 1.3 is required: update the client's TLS library")


Handler = Callable[[Request, Context], Awaitable[Response]]
