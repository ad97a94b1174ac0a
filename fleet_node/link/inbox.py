"""What the server signed, between the reader and the rooms.

Mental model
    The reader never waits for the journal, so signed frames queue here. Statements go through one worker in the order
    of the wire; cancels, bundles, floors, routes and credentials through another, since a cancel must get past
    statements that wait for room. A statement waits for the bundles and the floor that came before it, and what is
    about routes comes behind them, too: by those it is judged. What waits is bounded, and a fault of a worker ends the
    stream: one that lived on would be deaf.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import NamedTuple

from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.v1 import gateway_pb2
from fleet_node.link.credentials import Credentials
from fleet_node.link.ports import CommandStream, RouteStream, TrustPort

log = get_logger(__name__)

MAX_FRAME_BYTES = 1024 * 1024
"""Of a frame without trust bundles: twice the largest statement that a server makes."""
MAX_WAITING_BYTES = 80 * 1024 * 1024
"""As many commands as the largest `max_in_flight` allows, each with the largest arguments, and a little."""


class _Waiting(NamedTuple):
    """A frame that waits; `judged` is set once the bundle or floor is that it brings, or that came before it."""

    control: gateway_pb2.ServerControl
    size_bytes: int
    judged: asyncio.Event | None


class Inbox:
    """See the module's mental model.

    Args:
        commands: takes statements and cancels.
        trust: takes trust bundles.
        credentials: takes new credentials, and orders to make them.
        routes: takes config snapshots and leases; None leaves them unread.
        answer: sends a control frame.
        renew: has a new stream take over.
        failed: ends the stream.
    """

    def __init__(
        self,
        commands: CommandStream,
        trust: TrustPort,
        credentials: Credentials,
        routes: RouteStream | None = None,
        *,
        answer: Callable[[gateway_pb2.NodeControl], None],
        renew: Callable[[], None],
        failed: Callable[[Refusal], None],
    ) -> None:
        self._commands = commands
        self._trust = trust
        self._credentials = credentials
        self._routes = routes
        self._answer = answer
        self._renew = renew
        self._failed = failed
        self._statements: asyncio.Queue[_Waiting | None] = asyncio.Queue()
        self._orders: asyncio.Queue[_Waiting | None] = asyncio.Queue()
        self._judged: asyncio.Event | None = None
        self._waiting_bytes = 0
        self._closed = False

    def put_nowait(self, control: gateway_pb2.ServerControl, size_bytes: int) -> None:
        """Queue a frame with commands, a cancel, a floor, trust bundles, or about routes or credentials.

        Args:
            control: as it came.
            size_bytes: of it.
        """
        self._waiting_bytes += size_bytes
        if size_bytes > MAX_FRAME_BYTES and not control.HasField("trust_bundle"):
            self._failed(Refusal(Reason.FRAME_TOO_LARGE, f"the server sent a frame of {size_bytes} bytes"))
        elif self._waiting_bytes > MAX_WAITING_BYTES:
            self._failed(Refusal(Reason.MALFORMED, "the server sent more at once than any node may have waiting"))
        elif control.HasField("commands"):
            self._statements.put_nowait(_Waiting(control, size_bytes, self._judged))
        elif control.HasField("trust_bundle") or control.HasField("floor"):
            self._judged = asyncio.Event()
            self._orders.put_nowait(_Waiting(control, size_bytes, self._judged))
        else:
            self._orders.put_nowait(_Waiting(control, size_bytes, None))

    def start(self) -> set[asyncio.Task[None]]:
        """Start the workers. They end after `close`, once what they are at is done."""
        return {asyncio.create_task(self._loudly(work)) for work in (self._take_statements(), self._take_orders())}

    def close(self) -> None:
        """Take no more: the stream has ended, and what still waits comes again on the next one."""
        if not self._closed:
            self._closed = True
            self._statements.put_nowait(None)
            self._orders.put_nowait(None)

    async def _take_statements(self) -> None:
        while (waiting := await self._statements.get()) is not None:
            if waiting.judged is not None:
                await waiting.judged.wait()
            if not self._closed:
                await self._commands.command_frame(waiting.control.commands)
            self._waiting_bytes -= waiting.size_bytes

    async def _take_orders(self) -> None:
        try:
            await self._take_each_order()
        finally:  # a statement that waits for one behind the order that failed would outlive the stream
            self.close()
            while not self._orders.empty():
                left = self._orders.get_nowait()
                if left is not None and left.judged is not None:
                    left.judged.set()

    async def _take_each_order(self) -> None:
        while (waiting := await self._orders.get()) is not None:
            if waiting.judged is not None:
                await self._judge(waiting.control, waiting.judged)
            elif not self._closed and waiting.control.HasField("cancel"):
                await self._commands.cancel_frame(waiting.control.cancel)
            elif not self._closed and (waiting.control.HasField("config") or waiting.control.HasField("lease")):
                await self._take_route(waiting.control)
            elif not self._closed:
                await self._take_credentials(waiting.control)
            self._waiting_bytes -= waiting.size_bytes

    async def _judge(self, control: gateway_pb2.ServerControl, judged: asyncio.Event) -> None:
        try:
            if control.HasField("trust_bundle"):
                applied = await self._trust.offer(control.trust_bundle.bundles)
                self._answer(gateway_pb2.NodeControl(bundle_applied=applied))
            elif not self._closed:
                await self._commands.floor_frame(control.floor)
        except BaseException:
            self.close()  # nor is what waits for it judged without it
            raise
        finally:
            judged.set()  # a statement that waits for it would outlive the stream

    async def _take_route(self, control: gateway_pb2.ServerControl) -> None:
        if self._routes is None:
            return
        if control.HasField("config"):
            await self._routes.config_frame(control.config)
        else:
            await self._routes.lease_frame(control.lease)

    async def _take_credentials(self, control: gateway_pb2.ServerControl) -> None:
        taken = await self._credentials.take(control)
        if taken.answer is not None:
            self._answer(taken.answer)
        if taken.renew:
            self._renew()

    async def _loudly(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception as error:
            log.exception("frame_not_taken")
            detail = f"a frame from the server could not be taken ({type(error).__name__}): see the node's log"
            self._failed(Refusal(Reason.INTERNAL, detail))
