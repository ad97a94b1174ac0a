"""Routes of one stream: what the node found goes down into the routes room, its part of the configuration comes back.

Mental model
    Made for a node that has something to do with routes, or says something of them; of any other stream it is a None.
    Findings wait in a backlog that holds nobody back, and go down one call at a time; what calls for a decision now
    does not wait for a call that is under way. Who asked for its snapshot is answered once what it found is recorded
    and decided, also when that changed nothing. Snapshots and leases go out at a pace: what wakes meanwhile is read
    once, and a flood of asks is answered as often as one. A stream that was overtaken, or ends, says nothing more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.v1 import gateway_pb2, lease_pb2, route_pb2
from fleet_server.observability.metrics import StreamMetrics
from fleet_server.routes.service import RouteService
from fleet_server.sessions.rules import TokenBucket
from fleet_server.streams.command_lane import Send
from fleet_server.streams.pump import Pump
from fleet_server.streams.report_lane import HeldReports
from fleet_server.streams.route_backlog import RouteBacklog, Taken
from fleet_server.streams.route_rules import check_applied, check_health, check_lease_ack

log = get_logger(__name__)

MAX_CONFIG_BYTES = 1024 * 1024 - 4096
"""Of a snapshot; a frame has 1 MiB. The routes room lets no node have so many routes."""
MAX_ANSWERS_WAITING = 64
_RECORDS_PER_S, _RECORDS_AT_ONCE = 4.0, 8.0
_ANSWERS_PER_S, _ANSWERS_AT_ONCE = 4.0, 16.0
_SENDS_PER_S, _SENDS_AT_ONCE = 1.0, 4.0
_REFUSALS_PER_S, _REFUSALS_AT_ONCE = 1 / 60, 8.0


class RouteLane:
    """See the module's mental model.

    Args:
        hello: what the node said when it opened the stream; an empty one if that was nothing about routes.
        generation: of the authority that signs now.
        held: bytes that all streams hold.
        send: queues a control frame.
        failed: told when the lane cannot go on; the stream ends then.
    """

    __slots__ = (
        "_answers",
        "_answers_pace",
        "_asked",
        "_asks_recording",
        "_backlog",
        "_clock",
        "_config_due",
        "_epoch",
        "_generation",
        "_held_version",
        "_leases_due",
        "_leases_said",
        "_listener",
        "_listener_due",
        "_looking",
        "_metrics",
        "_next",
        "_node_id",
        "_noting",
        "_recording",
        "_records_pace",
        "_refusals_pace",
        "_refused",
        "_room",
        "_send",
        "_sends_pace",
        "_stopped",
        "_urgently",
    )

    def __init__(
        self,
        node_id: str,
        epoch: int,
        room: RouteService,
        clock: Clock,
        hello: gateway_pb2.HelloBody,
        *,
        generation: int,
        held: HeldReports,
        metrics: StreamMetrics,
        send: Send,
        failed: Callable[[Exception], None],
    ) -> None:
        self._node_id = node_id
        self._epoch = epoch
        self._room = room
        self._clock = clock
        self._metrics = metrics
        self._send = send
        self._stopped = False
        self._generation = generation
        # What an authority before this one signed counts for nothing once the node has the newer bundle.
        self._held_version = hello.config_version if hello.bundle_version.generation == generation else 0
        self._listener: gateway_pb2.ProbeListener | None = None
        if hello.HasField("probe_listener"):
            self._listener = gateway_pb2.ProbeListener()
            self._listener.CopyFrom(hello.probe_listener)  # a part of a message would keep all of it
        self._listener_due = True  # told before anything else: peers were perhaps told of an earlier one
        self._config_due = self._leases_due = self._asked = False
        self._refused = False
        self._asks_recording = 0
        self._leases_said: frozenset[bytes] = frozenset()
        self._backlog = RouteBacklog(held)
        self._next: Taken | None = None  # what did not have to wait in it
        self._answers: deque[route_pb2.ConfigApplied | lease_pb2.LeaseAck] = deque(maxlen=MAX_ANSWERS_WAITING)
        now_s = clock.monotonic()
        self._records_pace = TokenBucket(_RECORDS_PER_S, _RECORDS_AT_ONCE, now_s)
        self._refusals_pace = TokenBucket(_REFUSALS_PER_S, _REFUSALS_AT_ONCE, now_s)
        self._answers_pace = TokenBucket(_ANSWERS_PER_S, _ANSWERS_AT_ONCE, now_s)
        self._sends_pace = TokenBucket(_SENDS_PER_S, _SENDS_AT_ONCE, now_s)
        self._recording = Pump(self._record, clock, failed)
        self._urgently = Pump(self._record, clock, failed)
        self._noting = Pump(self._note, clock, failed)
        self._looking = Pump(self._look, clock, failed)

    def start(self) -> None:
        """Tell the room of the hello, and the node what it lacks."""
        self._config_due = self._leases_due = True
        self._looking.kick()

    def stop(self) -> None:
        """Say nothing more, and take nothing more down: a newer stream of the node does, or none."""
        self._stopped = True
        self._backlog.clear()
        self._next = None
        self._answers.clear()
        for pump in (self._recording, self._urgently, self._noting, self._looking):
            pump.stop()

    def wake_config(self) -> None:
        """The node's part of the configuration changed."""
        self._config_due = True
        self._look_soon()

    def signed_by(self, generation: int) -> None:
        """The authority of this generation signs from now on: what one before it signed is sent again."""
        if generation != self._generation:
            self._generation = generation
            self._asked = self._held_version > 0
            self._look_soon()

    def bundle_taken(self) -> None:
        """The node holds a newer bundle: what it refused under the one before it is sent again."""
        if self._refused:
            self._refused = False
            self._asked = True
            self._look_soon()

    def wake_leases(self) -> None:
        """A lease that the node is a party to was renewed."""
        self._leases_due = True
        self._look_soon()

    def take(self, control: gateway_pb2.NodeControl) -> None:
        """Take what the node says of routes.

        Raises:
            Refusal: MALFORMED.
        """
        if control.HasField("route_health"):
            self._take_health(check_health(control.route_health))
        elif control.HasField("config_applied"):
            check_applied(control.config_applied)
            self._take_applied(control.config_applied)
        else:
            check_lease_ack(control.lease_ack)
            self._answer(control.lease_ack)

    def _take_health(self, health: route_pb2.RouteHealth) -> None:
        if self._stopped:
            return
        if not self._recording.running and self._backlog.empty:
            self._next = self._backlog.pass_by(health)
        else:
            self._metrics.route_findings_given_up.inc(self._backlog.add(health))
        if self._recording.running and self._backlog.urgent:
            self._urgently.kick()
        else:
            self._recording.kick()

    def _take_applied(self, applied: route_pb2.ConfigApplied) -> None:
        if not applied.applied:
            self._refused = True
            if not self._refusals_pace.take(self._clock.monotonic()):
                return  # each is a row of the audit
        # What it withdrew follows from the snapshot; kept here it would be what a node can fill memory with.
        self._answer(route_pb2.ConfigApplied(version=applied.version, applied=applied.applied, reason=applied.reason))

    def _answer(self, answer: route_pb2.ConfigApplied | lease_pb2.LeaseAck) -> None:
        if not self._stopped:
            self._answers.append(answer)
            self._noting.kick()

    async def _record(self) -> None:
        while self._next is not None or not self._backlog.empty:
            await self._wait(self._records_pace)
            taken, self._next = self._next or self._backlog.take(), None
            if taken is not None:
                await self._record_one(taken)

    async def _record_one(self, taken: Taken) -> None:
        asks = bool(taken.health.refresh_routes)
        self._asks_recording += asks
        try:
            await self._room.record(self._node_id, self._epoch, taken.health)
        except Exception:
            if not self._stopped:
                self._metrics.route_findings_given_up.inc(self._backlog.put_back(taken))
            raise
        else:
            self._asked |= asks
        finally:
            self._asks_recording -= asks
            self._look_soon()

    async def _note(self) -> None:
        while self._answers:
            await self._wait(self._answers_pace)
            if not self._answers:
                return
            answer = self._answers[0]
            if isinstance(answer, route_pb2.ConfigApplied):
                await self._room.note_applied(self._node_id, self._epoch, answer)
            else:
                await self._room.note_lease(self._node_id, self._epoch, answer)
            if self._answers and self._answers[0] is answer:  # others may have pushed it out meanwhile
                self._answers.popleft()

    def _look_soon(self) -> None:
        """Unless an ask is being recorded: its answer, a moment later, says all of it at once."""
        due = self._config_due or self._leases_due or self._asked
        if due and not self._asks_recording and not self._stopped:
            self._looking.kick()

    async def _look(self) -> None:
        await self._wait(self._sends_pace)
        asked, config, leases = self._asked, self._config_due, self._leases_due
        self._asked = self._config_due = self._leases_due = False
        try:
            if self._listener_due:
                await self._room.note_listener(self._node_id, self._epoch, self._listener)
                self._listener, self._listener_due = None, False
            sent = (asked or config) and await self._send_config(again=asked)
            if leases and not sent:
                await self._send_leases()
        except Exception:
            self._asked |= asked
            self._config_due |= config
            self._leases_due |= leases
            raise

    async def _send_config(self, *, again: bool) -> bool:
        part = await self._room.snapshot(self._node_id)
        if (0 if part is None else part[0]) < self._held_version:
            # Of a database that has gone back since, and the node refuses what is older.
            await self._room.note_shown(self._node_id, self._epoch, self._held_version)
            part = await self._room.snapshot(self._node_id)
        if part is None or self._stopped or not (again or part[0] > self._held_version):
            return False
        version, signed = part
        frame = gateway_pb2.ServerControl(config=signed)
        size_bytes = frame.ByteSize()
        if size_bytes > MAX_CONFIG_BYTES:
            say = "disable routes of this node, or spread them over more relays"
            log.error("route_config_too_large", node_id=self._node_id, bytes=size_bytes, next=say)
            return False
        self._held_version = version
        self._send(frame, size_bytes)
        return True

    async def _send_leases(self) -> None:
        leases = await self._room.leases_of(self._node_id)
        if self._stopped:
            return
        for lease in leases:
            if lease.statement not in self._leases_said:
                frame = gateway_pb2.ServerControl(lease=lease)
                self._send(frame, frame.ByteSize())
        self._leases_said = frozenset(lease.statement for lease in leases)

    async def _wait(self, bucket: TokenBucket) -> None:
        while not bucket.take(self._clock.monotonic()):
            await self._clock.sleep(bucket.wait_s(self._clock.monotonic()))
