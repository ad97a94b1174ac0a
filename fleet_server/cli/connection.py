"""The one connection to the Admin service: TLS against the pinned CA, the token on every call, refusals as failures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, cast

import grpc

from fleet.status import decode
from fleet.v1 import admin_pb2
from fleet.v1.admin_pb2_grpc import AdminStub
from fleet_server.cli.failures import Failure, Refused, Unreachable, explain
from fleet_server.cli.profile import Context
from fleet_server.cli.silence import Silence
from fleet_server.cli.terminal import duration

PAGE_SIZE = 1000
CALL_TIMEOUT_S = 30.0
MAX_BUSY_WAIT_S = 60.0
_MAX_TRIES = 5
_LOOK_AGAIN_S = (0.5, 1.0, 2.0, 4.0, 8.0)
_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.enable_retries", 0),  # a call is repeated here, where its refusal is understood, or not at all
    ("grpc.use_local_subchannel_pool", 1),
)

Request = TypeVar("Request")
Response = TypeVar("Response")
Row = TypeVar("Row")


class Paged(Protocol):
    """An answer that may have a next page."""

    @property
    def next_page_token(self) -> str:
        """Empty at the end."""
        ...


PagedResponse = TypeVar("PagedResponse", bound=Paged)


Follow = Callable[[Context], Context | None]


class _LateStub:
    """A stub whose methods belong to the channel that is open when they are called."""

    def __init__(self, stub: Callable[[], AdminStub]) -> None:
        self._stub = stub

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            return getattr(self._stub(), name)(*args, **options)

        return call


class Admin:
    """Calls to the Admin service of one context.

    Args:
        context: server, CA and token.
        say: takes messages for the person.
        sleep: waits seconds, when a busy server names a delay.
        follow: answers the context with other TLS CAs when the server proves itself by these, and None otherwise;
            asked once, when it shows a certificate of a CA that is not trusted.
    """

    def __init__(
        self,
        context: Context,
        *,
        say: Callable[[str], None],
        sleep: Callable[[float], None],
        follow: Follow = lambda context: None,
    ) -> None:
        self.context = context
        self._say = say
        self._sleep = sleep
        self._follow: Follow | None = follow
        self._metadata = (("authorization", f"Bearer {context.token}"),)
        self._open()
        self.stub = cast("AdminStub", _LateStub(lambda: self._stub))

    def _open(self) -> None:
        credentials = grpc.ssl_channel_credentials(root_certificates=self.context.ca_pem.encode())
        self.channel = grpc.secure_channel(self.context.server, credentials, options=_OPTIONS)
        self._stub = AdminStub(self.channel)

    def _followed(self, error: grpc.RpcError) -> bool:
        """Whether there is a new channel, under TLS CAs that took the place of the pinned ones. What failed so never
        reached the server."""
        failed: Any = error
        if self._follow is None or "CERTIFICATE_VERIFY_FAILED" not in (failed.details() or ""):
            return False
        follow, self._follow = self._follow, None
        context = follow(self.context)
        if context is None:
            return False
        self.channel.close()
        self.context = context
        self._open()
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, Exception):
            # Ctrl-C: close() could wait for ever (see `__main__`). The process ends now, and its connection with it.
            return
        self.channel.close()

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Response:
        """Make one call. A server that is busy and names a delay is obeyed, a bounded number of times.

        Raises:
            Failure: as `failures.explain` says.
        """
        waited_s = 0.0
        for attempt in range(1, _MAX_TRIES + 1):
            try:
                return method(request, timeout=timeout_s, metadata=self._metadata)
            except grpc.RpcError as error:
                if self._followed(error):
                    continue
                delay_s = _busy_delay_s(error)
                waited_s += delay_s or 0.0
                if delay_s is None or attempt == _MAX_TRIES or waited_s > MAX_BUSY_WAIT_S:
                    raise self._explained(error, timeout_s) from error
                self._say(f"the server is busy: trying again in {delay_s:.1f} s")
                self._sleep(delay_s)
        raise AssertionError("unreachable")

    def stream(
        self,
        method: grpc.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        *,
        timeout_s: float | None = None,
        silence_s: float | None = None,
    ) -> Iterator[Response]:
        """Read a stream to its end; it is cancelled when the reader leaves early.

        Args:
            method: what to call.
            request: what to ask.
            timeout_s: of the whole stream.
            silence_s: between two answers, of a server that says something all the time.

        Raises:
            Failure: as `failures.explain` says; unreachable also for silence.
        """
        while True:
            reading: Any = method(request, timeout=timeout_s, metadata=self._metadata)
            silence = Silence(silence_s, reading.cancel)
            try:
                with silence:
                    for answer in reading:
                        silence.broken()
                        yield answer
                return
            except grpc.RpcError as error:
                if silence.ended_it:
                    raise self._silent(silence_s or 0.0) from error
                if not self._followed(error):
                    raise self._explained(error, timeout_s or 0.0) from error
            finally:
                with contextlib.suppress(grpc.RpcError):
                    reading.cancel()

    def _explained(self, error: grpc.RpcError, timeout_s: float) -> Failure:
        failure = explain(error, server=self.context.server)
        if isinstance(failure, Unreachable) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._turn_away()
            failure.waited_s = timeout_s
        return failure

    def _silent(self, waited_s: float) -> Unreachable:
        self._turn_away()
        return Unreachable(
            f"the server at {self.context.server} has said nothing for {duration(waited_s)}",
            hint="does it stand still, or is a firewall in between? Try again, or look at its log",
            waited_s=waited_s,
        )

    def _turn_away(self) -> None:
        """Who answers no more may stand still, and this connection with it: what is asked next goes over a new one, and
        behind a load balancer to another replica."""
        self.channel.close()
        self._open()

    def follow(
        self,
        method: grpc.UnaryStreamMultiCallable[Request, Response],
        request_for: Callable[[], Request],
        *,
        lost: Callable[[str], None] | None = None,
    ) -> Iterator[Response]:
        """Read a stream that is opened again when the server goes away: a watch outlives its restart.

        Args:
            method: what to call.
            request_for: gives the request of each opening, so that one goes on where another was lost.
            lost: told why it is being opened again; the person is, by default.

        Raises:
            Failure: as `failures.explain` says; unreachable only before the first answer.
        """
        met, pauses_s = False, iter(_LOOK_AGAIN_S)
        while True:
            try:
                for answer in self.stream(method, request_for()):
                    met, pauses_s = True, iter(_LOOK_AGAIN_S)
                    yield answer
                return
            except Unreachable as failure:
                if not met:
                    raise
                pause_s = next(pauses_s, _LOOK_AGAIN_S[-1])
                (lost or self._say)(f"{failure.message}: looking again in {pause_s:g} s")
                self._sleep(pause_s)

    def pages(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, PagedResponse],
        request_for: Callable[[admin_pb2.Page], Request],
        rows_of: Callable[[PagedResponse], Iterator[Row]],
        *,
        limit: int | None = None,
    ) -> list[Row]:
        """Rows of every page, or the first `limit` of them.

        Raises:
            Failure: as `failures.explain` says.
        """
        rows: list[Row] = []
        token = ""
        seen: set[str] = set()
        while True:
            size = PAGE_SIZE if limit is None else min(PAGE_SIZE, limit - len(rows))
            answer = self.call(method, request_for(admin_pb2.Page(size=size, token=token)))
            rows.extend(rows_of(answer))
            token = answer.next_page_token
            if not token or (limit is not None and len(rows) >= limit):
                return rows
            if token in seen:  # a server that hands out the same page for ever must not hold the terminal for ever
                raise Refused("the server's list does not end: it repeats a page")
            seen.add(token)


def _busy_delay_s(error: grpc.RpcError) -> float | None:
    failed: Any = error
    if failed.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return None
    return decode(error).retry_after_s
