"""All live streams of this replica.

Mental model
    A node has at most one newest stream; `streams` maps the node to it. The database decides who is newest (the
    epoch), this registry only follows. A stream that is overtaken stays alive for a while when the node itself asked
    for the takeover (make before break): it still delivers results and ends with the node's goodbye. Any other
    overtaken stream is half-open, and is ended at once. One loop beats for all streams: it pings those that were quiet,
    finds dead peers, asks for fresh proofs. Liveness is kept in memory; the nodes room writes it in bulk.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.v1 import gateway_pb2
from fleet_server.database.wakeup import Wakeup
from fleet_server.observability.metrics import StreamMetrics
from fleet_server.sessions.service import SessionService
from fleet_server.streams import overtaken, rules
from fleet_server.streams.command_lane import CommandLane
from fleet_server.streams.route_lane import RouteLane
from fleet_server.streams.stream import Stream

log = get_logger(__name__)

_TICK_S = 0.1
_FIRST_PING_S = 0.5


class StreamRegistry:
    """Keeps, beats and ends the streams of this replica.

    Args:
        heartbeat_ms: wished interval between beats; stretched with the number of streams.
        session_ttl_ms: life of a session, for renewing it in time.
        max_streams: most streams at once.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        wakeup: Wakeup,
        sessions: SessionService,
        metrics: StreamMetrics,
        heartbeat_ms: int,
        session_ttl_ms: int,
        max_streams: int,
    ) -> None:
        self._clock = clock
        self._sessions = sessions
        self._metrics = metrics
        self._heartbeat_ms = heartbeat_ms
        self._session_ttl_ms = session_ttl_ms
        self._max_streams = max_streams
        self._newest: dict[str, Stream] = {}
        self._overtaken: dict[str, list[Stream]] = {}
        self._all: dict[str, Stream] = {}
        self._due: list[tuple[float, int, Stream]] = []
        self._order = itertools.count()
        self._empty = asyncio.Event()
        self._empty.set()
        for kind, wake in (
            ("node", lambda stream: stream.commands.wake()),
            ("cancel", lambda stream: stream.commands.wake_cancels()),
            ("node-state", Stream.refresh_membership),
            ("route-config", lambda stream: stream.about_routes(RouteLane.wake_config)),
            ("route-lease", lambda stream: stream.about_routes(RouteLane.wake_leases)),
        ):
            wakeup.subscribe_kind(kind, partial(self._wake, wake))
        wakeup.subscribe("bundle", self._offer_bundle)

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._all.values()))

    @property
    def heartbeat_interval_ms(self) -> int:
        """Milliseconds between beats of one stream, now."""
        return rules.heartbeat_interval_ms(self._heartbeat_ms, len(self._all))

    def newest(self, node_id: str) -> Stream | None:
        """The newest stream of a node that is here."""
        return self._newest.get(node_id)

    def lane(self, node_id: str) -> CommandLane | None:
        """Where commands of a node leave: the lane of its newest stream here. Any thread may ask."""
        stream = self._newest.get(node_id)
        return None if stream is None else stream.commands

    def check_room(self, *, expected: int = 0) -> None:
        """Refuse another stream when this replica holds as many as it may. It says no delay: a node goes to another
        replica at once, if it knows any.

        Args:
            expected: streams that are about to come.

        Raises:
            Refusal: UNAVAILABLE.
        """
        if len(self._all) + expected >= self._max_streams:
            raise Refusal(
                Reason.UNAVAILABLE,
                f"this replica holds as many streams as it may ({self._max_streams}): another one has to take it",
            )

    def add(self, stream: Stream) -> None:
        """A stream was welcomed; it is the newest of its node."""
        newest = self._newest.get(stream.node_id)
        taken_over = self._all.get(stream.takeover_of)
        if taken_over is not None and taken_over.node_id == stream.node_id:
            stream.commands.continue_from(taken_over.commands)
        # Of two claims at once the later one may get here first: the epoch says which stream is newest.
        older, newer = (stream, newest) if newest and newest.epoch > stream.epoch else (newest, stream)
        if older is not None:
            self._overtaken.setdefault(stream.node_id, []).append(older)
        self._newest[stream.node_id] = newer
        self._all[stream.stream_id] = stream
        self._empty.clear()
        self._metrics.opens.inc()
        self._metrics.open.set(len(self._all))
        self._schedule(stream, _FIRST_PING_S)
        if older is not None:
            overtaken.leave_behind(older, takeover_of=newer.takeover_of)

    def remove(self, stream: Stream) -> None:
        """A stream has ended."""
        if self._all.pop(stream.stream_id, None) is None:
            return
        if self._newest.get(stream.node_id) is stream:
            del self._newest[stream.node_id]
        else:
            self._forget_overtaken(stream)
        self._metrics.closes.labels(stream.close_reason).inc()
        self._metrics.open.set(len(self._all))
        if not self._all:
            self._empty.set()

    def _forget_overtaken(self, stream: Stream) -> None:
        overtaken = self._overtaken[stream.node_id]
        overtaken.remove(stream)
        if not overtaken:
            del self._overtaken[stream.node_id]

    def _wake(self, wake: Callable[[Stream], None], node_id: str) -> None:
        """Something about a node was committed: all its streams here hear of it, overtaken ones too."""
        newest = self._newest.get(node_id)
        for stream in (*self._overtaken.get(node_id, ()), *(() if newest is None else (newest,))):
            wake(stream)

    def _offer_bundle(self) -> None:
        for stream in self:
            stream.offer_bundle()

    async def leave_overtaken(self, newest: Callable[[Sequence[str]], Awaitable[Mapping[str, int]]]) -> None:
        """Have every stream that is not its node's newest any more read its node's row, and end: this replica stood
        still, or was cut off, and nobody told it what it missed.

        Args:
            newest: epochs of nodes' newest streams, at whichever replica.

        Raises:
            Refusal: the database is away.
        """
        streams = list(self)
        epochs = await newest([stream.node_id for stream in streams])
        for stream in streams:
            if epochs.get(stream.node_id, stream.epoch) != stream.epoch:
                stream.refresh_membership()

    async def wait_empty(self) -> None:
        """Return once no stream is left."""
        await self._empty.wait()

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            await self._clock.sleep(_TICK_S)
            self.beat()

    def beat(self) -> None:
        """Everything that is due now."""
        now = self._clock.monotonic()
        while self._due and self._due[0][0] <= now:
            _, _, stream = heapq.heappop(self._due)
            if stream.stream_id not in self._all or stream.ended:
                continue
            self._beat_one(stream, now)
            self._schedule(stream)

    def _beat_one(self, stream: Stream, now: float) -> None:
        if stream.pulse.lost and not stream.held_back:
            stream.end(Refusal(Reason.HEARTBEAT_LOST, "three pings stayed unanswered: the node may connect again"))
            return
        now_ms = self._clock.now_ms()
        if now_ms >= stream.pulse.session_expires_at_ms:
            stream.end(Refusal(Reason.SESSION_EXPIRED, "the session ended without a fresh proof: handshake again"))
            return
        interval_ms = self.heartbeat_interval_ms
        stream.beat(now, now_ms, interval_ms)
        if not stream.pulse.reauth_asked and rules.reauth_due(
            now_ms, stream.pulse.session_expires_at_ms, self._session_ttl_ms, interval_ms
        ):
            self._ask_reauth(stream, now_ms)

    def _ask_reauth(self, stream: Stream, now_ms: int) -> None:
        stream.pulse.reauth_asked = True
        challenge = self._sessions.reauth_challenge(stream.node_id, stream.stream_id)
        reauth = gateway_pb2.Reauth(challenge=challenge, new_expires_at_ms=now_ms + self._session_ttl_ms)
        stream.send(gateway_pb2.ServerControl(reauth=reauth))

    def _schedule(self, stream: Stream, at_most_s: float = float("inf")) -> None:
        due = self._clock.monotonic() + min(self.heartbeat_interval_ms / 1000, at_most_s)
        heapq.heappush(self._due, (due, next(self._order), stream))
