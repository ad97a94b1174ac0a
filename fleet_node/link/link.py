"""Keeps one stream up, for ever: connect, serve, hand over, come back.

Mental model
    At most one connection serves; during a takeover a second one is opened beside it, and only once that is welcomed
    does the first say goodbye (make before break). Nothing the server says makes the node give up: refusals change
    how long it stays away, and what `fleet-node status` shows. Every wait is jittered and ends at once on `stop`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from typing import Any, TypeVar

from fleet.backoff import Backoff, BackoffPolicy, full_jitter_s
from fleet.clock import Clock, ServerTime
from fleet.errors import Advice, Reason, Refusal, advice
from fleet.logs import get_logger
from fleet_node.enrollment.membership import Membership
from fleet_node.link import rules
from fleet_node.link.caller import ClientCertificate, GatewayCaller, KeptCaller, LeafCache
from fleet_node.link.connection import Connection
from fleet_node.link.credentials import Credentials, Shown
from fleet_node.link.following import open_following
from fleet_node.link.handshake import handshake
from fleet_node.link.hello import SelfDescription
from fleet_node.link.link_status import LinkState, LinkStatus
from fleet_node.link.ports import Ports
from fleet_node.observability.metrics import LinkMetrics

log = get_logger(__name__)
T = TypeVar("T")
_WISHED_ATTEMPTS = 3
_SENT_ON = BackoffPolicy(initial_s=0.25, maximum_s=5.0)
"""From one attempt to take over to the next, and from one goaway of a stream to what the next one asks for."""
HARDLY_THERE_S = 1.0
"""A stream that a goaway ends sooner counts as a failed attempt: a server that sends everybody on must not make a node
spin."""


class Link:
    """See the module's mental model.

    Args:
        credentials: what this node shows of itself.
        endpoints: overrides those of the signed bundle; empty uses the bundle's.
    """

    def __init__(
        self,
        *,
        credentials: Credentials,
        ports: Ports,
        about: SelfDescription,
        clock: Clock,
        server_time: ServerTime,
        metrics: LinkMetrics,
        backoff: BackoffPolicy | None = None,
        endpoints: tuple[str, ...] = (),
    ) -> None:
        self.status = LinkStatus(since_ms=clock.now_ms())
        self.credentials = credentials
        self._ports = ports
        self._about = about
        self._clock = clock
        self._server_time = server_time
        self._metrics = metrics
        self._backoff = Backoff(backoff or BackoffPolicy())
        self._endpoints = endpoints
        self._behind: tuple[str, ...] = ()  # endpoints: of the newest stream, and those that refused since
        self._leaves = LeafCache()
        self._kept = KeptCaller()
        self._stopping = asyncio.Event()
        self._stopped: asyncio.Task[bool]  # one for all waits: a return has ten of them, and each would make its own
        self._current: Connection | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._show(LinkState.CONNECTING)

    def stop(self) -> None:
        """Leave in order; `run` returns soon after."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until `stop`."""
        self._stopped = asyncio.create_task(self._stopping.wait())
        try:
            while not self._stopping.is_set():
                await self._serve_next()
        finally:
            self._stopped.cancel()
        await self._kept.close()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._show(LinkState.STOPPED)

    async def _serve_next(self) -> None:
        self._show(LinkState.CONNECTING)
        try:
            connection = await self._unless_stopped(self._connect("", self._known_endpoints()))
        except Refusal as refusal:
            await self._stay_away(refusal, "stream_not_opened")  # counted by the outcome of the handshake
            return
        if connection is not None:
            await self._serve(connection)

    async def _connect(self, takeover_of: str, endpoints: tuple[str, ...]) -> Connection:
        """Authenticate and open a stream.

        Raises:
            Refusal: with the connection closed again, or kept for the next attempt.
        """
        mutual_tls = self._ports.mutual_tls
        certificate = mutual_tls.choose() if mutual_tls is not None else None
        if mutual_tls is not None and certificate is not None:
            endpoints = mutual_tls.endpoints
        try:
            connection = await self._connect_to(endpoints, certificate, takeover_of)
        except Refusal as refusal:
            if mutual_tls is not None:
                mutual_tls.note_failure(refusal.reason)
            raise
        if mutual_tls is not None:
            mutual_tls.note_stream(certified=connection.caller.certified)
        return connection

    async def _connect_to(
        self, endpoints: tuple[str, ...], certificate: ClientCertificate | None, takeover_of: str
    ) -> Connection:
        trust = self._ports.trust
        caller = await self._kept.take(endpoints, trust.state.tls_ca_der, certified=certificate is not None)
        if caller is None:
            caller = await open_following(
                endpoints, trust, self._membership, self._leaves, certificate, behind=self._behind
            )
        try:
            connection = await self._open_stream(caller, takeover_of)
        except BaseException as error:
            outcome = str(error.reason) if isinstance(error, Refusal) else "error"
            self._metrics.handshakes.labels(outcome).inc()
            await self._kept.settle(caller, error, trust.state.tls_ca_der)
            if not rules.is_busy(error):
                self._behind = rules.put_behind(self._behind, caller.endpoint)
            others = rules.other_endpoints(error, endpoints, caller.endpoint)
            if not others:
                raise
            log.info("endpoint_passed_over", endpoint=caller.endpoint, detail=str(error))
            return await self._connect_to(others, certificate, takeover_of)
        self._metrics.handshakes.labels("ok").inc()
        self._note_welcome(connection)
        return connection

    @property
    def _membership(self) -> Membership:
        return self.credentials.first().membership

    async def rotate_keys(self, *, identity: bool, sealing_key: bool) -> None:
        """Replace this node's own keys over the live stream; `credentials.rotating` tells when it is done.

        Raises:
            Refusal: UNAVAILABLE when there is no live stream.
            RotationPinnedError, OSError: see `Credentials.begin`.
        """
        if self._current is None:
            raise Refusal(Reason.UNAVAILABLE, "there is no stream to rotate the keys over: try again once it is live")
        statement = await self.credentials.begin(identity=identity, sealing_key=sealing_key)
        if self._current is not None:
            self._current.send_control(statement)  # a stream that opens meanwhile says it by itself

    async def _open_stream(self, caller: GatewayCaller, takeover_of: str) -> Connection:
        """Open a stream with whichever credentials the server knows."""
        shown = self.credentials.first()
        while True:
            try:
                connection = await self._open_stream_as(shown, caller, takeover_of)
            except Refusal as refusal:
                another = self.credentials.after_refusal(shown, refusal.reason)
                if another is None:
                    raise
                log.info("other_credentials_tried", reason=str(refusal.reason))
                shown = another
                continue
            for control in await self.credentials.welcomed(shown):
                connection.send_control(control)
            return connection

    async def _open_stream_as(self, shown: Shown, caller: GatewayCaller, takeover_of: str) -> Connection:
        session = await handshake(
            caller,
            membership=shown.membership,
            keys=shown.keys,
            trust=self._ports.trust,
            server_time=self._server_time,
        )
        connection = Connection(
            caller=caller,
            session=session,
            shown=shown,
            credentials=self.credentials,
            ports=self._ports,
            about=self._about,
            clock=self._clock,
            server_time=self._server_time,
        )
        await connection.open(takeover_of)
        return connection

    async def _serve(self, connection: Connection) -> None:
        """Serve a connection and those that take over from it, until no stream is left."""
        current: Connection | None = connection
        while current is not None:
            self._current = current
            current = await self._serve_one(current)
        self._current = None

    async def _serve_one(self, connection: Connection) -> Connection | None:
        """Serve until the stream ends, or until its successor is welcomed, which is returned."""
        opened_at = self._clock.monotonic()
        running = asyncio.create_task(connection.run())
        plan, sent_on = None, Backoff(_SENT_ON)
        try:
            while True:
                waited: set[asyncio.Future[Any]] = {running, self._stopped, connection.goaway}
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if self._stopped.done():
                    connection.leave("SHUTDOWN")
                if self._stopped.done() or running.done():
                    break
                at_least_s = sent_on.next_delay_s() if plan is not None else self._breather_s(opened_at)
                plan = self._plan(connection, at_least_s)
                if plan.leave is not rules.Leave.TAKEOVER:
                    connection.leave("GOAWAY")
                    break
                successor = await self._take_over(connection, plan, running)
                if successor is not None:
                    self._metrics.reconnects.labels(plan.reason).inc()
                    self._retire(connection, running)
                    return successor
            refusal = await running
        except BaseException:
            running.cancel()
            raise
        finally:
            self._keep(connection.lingering)
        self._backoff.ended(self._clock.monotonic() - opened_at)
        await connection.caller.close()
        await self._after(refusal, plan)
        return None

    def _plan(self, connection: Connection, at_least_s: float) -> rules.Plan:
        renewing, goaway = connection.renewing, connection.take_goaway()
        plan = rules.plan_goaway(goaway, self._known_endpoints(), at_least_s=at_least_s)
        log.info("stream_renewed" if renewing else "goaway_received", reason=plan.reason, plan=str(plan.leave))
        return plan

    async def _take_over(
        self, connection: Connection, plan: rules.Plan, running: asyncio.Task[Refusal | None]
    ) -> Connection | None:
        """Open the next stream beside the old one; None when that ended, a stop came, or another goaway, first."""
        self._show(LinkState.MOVING)
        backoff = Backoff(_SENT_ON)
        delay_s = full_jitter_s(plan.delay_s, plan.window_s)
        for attempt in itertools.count():
            if await self._interrupted({running, connection.goaway}, delay_s):
                break
            # Where it was sent nobody may be by now, or no room: after a few attempts any replica will do.
            endpoints = plan.endpoints if attempt < _WISHED_ATTEMPTS else self._known_endpoints()
            try:
                return await self._unless_stopped(self._connect(connection.welcome.stream_id, endpoints))
            except Refusal as refusal:
                self._note_refusal(refusal)
                delay_s = backoff.next_delay_s(refusal.retry_after_s)
        return None

    def _retire(self, connection: Connection, running: asyncio.Task[Refusal | None]) -> None:
        connection.leave("TAKEOVER")

        async def finish() -> None:
            await asyncio.wait({running})
            await connection.caller.close()

        self._background(finish())

    async def _after(self, refusal: Refusal | None, plan: rules.Plan | None) -> None:
        if self._stopping.is_set():
            return
        if plan is not None and plan.leave is rules.Leave.RETURN:
            self._metrics.reconnects.labels(plan.reason).inc()
            await self._pause(full_jitter_s(plan.delay_s, plan.window_s))
        elif plan is not None and plan.leave is rules.Leave.STAY_AWAY:
            await self._lost(refusal or Refusal(Reason.SUSPENDED, "the server sent this node away"))
        else:
            await self._lost(refusal or Refusal(Reason.UNAVAILABLE, "the stream ended"))

    async def _lost(self, refusal: Refusal) -> None:
        self._metrics.reconnects.labels(str(refusal.reason)).inc()
        await self._stay_away(refusal, "stream_lost")

    async def _stay_away(self, refusal: Refusal, event: str) -> None:
        self._note_refusal(refusal)
        asked_s = refusal.retry_after_s
        if refusal.reason is Reason.BAD_PROOF and "keys" in self.credentials.rotating:
            asked_s = asked_s or 0.0  # the server may have taken the new keys under this stream: those are next
        delay_s = self._backoff.next_delay_s(rules.stay_away_s(refusal.reason, asked_s))
        level = log.error if advice(refusal.reason) is Advice.STOP else log.warning
        level(event, reason=str(refusal.reason), detail=refusal.detail, retry_in_s=round(delay_s, 2))
        await self._pause(delay_s)

    async def _pause(self, delay_s: float) -> None:
        self._show(LinkState.WAITING)
        self.status.next_attempt_s = round(delay_s, 3)
        self._metrics.backoff.set(delay_s)
        await self._interrupted(set(), delay_s)
        self.status.next_attempt_s = 0.0
        self._metrics.backoff.set(0)

    async def _unless_stopped(self, work: Coroutine[object, object, T]) -> T | None:
        """What `work` returns; None when a stop came first, which ends it."""
        working = asyncio.create_task(work)
        try:
            await asyncio.wait({working, self._stopped}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            return None
        finally:
            if not working.done():
                working.cancel()
                await asyncio.wait({working})

    async def _interrupted(self, others: set[asyncio.Future[Any]], delay_s: float) -> bool:
        """Wait `delay_s`; True when one of `others` ended or a stop came first. They are left running."""
        sleeping = asyncio.ensure_future(self._clock.sleep(delay_s))
        try:
            done, _ = await asyncio.wait({*others, sleeping, self._stopped}, return_when=asyncio.FIRST_COMPLETED)
            return bool(done - {sleeping})
        finally:
            sleeping.cancel()

    def _breather_s(self, opened_at: float) -> float:
        """Least seconds to wait after a goaway."""
        lived_s = self._clock.monotonic() - opened_at
        self._backoff.ended(lived_s)
        return self._backoff.next_delay_s() if lived_s < HARDLY_THERE_S else 0.0

    def _known_endpoints(self) -> tuple[str, ...]:
        return self._endpoints or self._ports.trust.state.endpoints or self._membership.endpoints

    def _note_welcome(self, connection: Connection) -> None:
        welcome = connection.welcome
        self.status.endpoint = connection.caller.endpoint
        self._behind = (connection.caller.endpoint,)
        self.status.stream_id = welcome.stream_id
        self.status.stream_epoch = welcome.stream_epoch
        self.status.replica_id = welcome.replica_id
        self.status.streams_opened += 1
        self.status.last_refusal = self.status.last_detail = ""
        self._show(LinkState.LIVE)
        log.info("stream_welcomed", endpoint=connection.caller.endpoint, epoch=welcome.stream_epoch)

    def _note_refusal(self, refusal: Refusal) -> None:
        self.status.last_refusal = str(refusal.reason)
        self.status.last_detail = refusal.detail

    def _show(self, state: LinkState) -> None:
        self.status.state = state
        self.status.since_ms = self._clock.now_ms()
        self._metrics.stream.set(str(state))

    def live_status(self) -> LinkStatus:
        """The status with what the last ping told."""
        if self._current is not None:
            self.status.rtt_us = self._current.heard.rtt_us
            self.status.clock_offset_ms = self._current.heard.offset_ms
            self._metrics.round_trip.set(self.status.rtt_us / 1e6)
            self._metrics.clock_offset.set(self.status.clock_offset_ms / 1000)
        return self.status

    def _background(self, work: Coroutine[object, object, None]) -> None:
        self._keep({asyncio.create_task(work)})

    def _keep(self, tasks: set[asyncio.Task[None]]) -> None:
        for task in tasks:
            if not task.done():
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
