"""One live stream of one node.

Mental model
    `run` writes and one task reads; everything else is a lane that costs a task only while it has work.
    Frames from the node go down into one room each; what comes back goes through the outbox, and only the writer
    seals frames, so counters grow in the order of the wire. The newest epoch of a node is sent commands; an older
    stream still delivers results until it says goodbye. A stream ends in exactly one way: `end(refusal)` closes the
    outbox, the writer empties it, and the call is aborted with that refusal (or finishes in order). EOF proves
    nothing: only `goodbye` and `drained` do. Nothing here waits for the database on the reader's or the writer's
    path, so pings flow while the database is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from fleet.channel import ChannelError, server_end
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.v1 import command_pb2, gateway_pb2, trust_pb2
from fleet_server.boundary import incident
from fleet_server.sessions.claim import StreamClaim
from fleet_server.streams import frames, rules
from fleet_server.streams.audit_lane import AuditLane
from fleet_server.streams.bundle_lane import BundleLane
from fleet_server.streams.command_lane import CommandLane
from fleet_server.streams.credential_lane import CredentialLane
from fleet_server.streams.frames import BadFrame
from fleet_server.streams.membership import Membership
from fleet_server.streams.notice_lane import NoticeLane
from fleet_server.streams.outbox import Outbox
from fleet_server.streams.pulse import Pulse
from fleet_server.streams.pump import Pump
from fleet_server.streams.report_lane import ReportLane
from fleet_server.streams.rooms import Rooms
from fleet_server.streams.route_lane import RouteLane
from fleet_server.streams.transport import Transport

log = get_logger(__name__)

_OF_ROUTES = frozenset({"route_health", "config_applied", "lease_ack"})
_LAST_WRITE_S = 2.0  # a peer that stopped reading must not keep its node online; its transport is reaped later


class Stream:
    """See the module's mental model.

    Args:
        claim: what the session room granted: node, epoch, frame keys, binding, hello.
        stream_id: id in welcome and goaway.
        takeover_of: stream id that this one takes over; empty if none.
    """

    def __init__(
        self, rooms: Rooms, transport: Transport, claim: StreamClaim, *, stream_id: str, takeover_of: str
    ) -> None:
        self.stream_id = stream_id
        self.takeover_of = takeover_of
        self.node_id = claim.node.node_id
        self.epoch = claim.epoch
        self.close_reason = "EOF"
        self._rooms = rooms
        self._transport = transport
        self._session = claim.session
        self._sealer, self._opener = server_end(claim.frame_keys)
        self._outbox = Outbox()
        self._ending: Refusal | None = None
        self._ended = False
        self._credentials = CredentialLane(claim, rooms.sessions, rooms.clock, self.send)
        self._accepted_seq = claim.hello_body.last_accepted_seq
        self._clock_offset_ms = 0
        self._turn = claim.turn
        self.pulse = Pulse(claim.session_expires_at_ms, claim.hello_body.bundle_version)
        self.bundles = BundleLane(rooms.trust, self.pulse, self.send)
        self.commands = CommandLane(
            claim=claim,
            commands=rooms.commands,
            trust=rooms.trust,
            clock=rooms.clock,
            metrics=rooms.metrics.commands,
            send=self.send,
            failed=self._failed,
        )
        self._reports = ReportLane(
            node_id=self.node_id,
            commands=rooms.commands,
            clock=rooms.clock,
            held=rooms.held_reports,
            ack=self._outbox.ack_reports,
            failed=self._failed,
        )
        self._telemetry = rooms.telemetry.open_stream(self.node_id, self.epoch, self._outbox.ack_telemetry)
        self.membership = Membership(rooms.nodes, claim, self)
        self._notices = NoticeLane(rooms.clock, rooms.held_reports, self._failed)
        self._deciding: Pump | None = None  # made with the first decision
        self._audit: AuditLane | None = None  # made with the first row: an idle node sends none
        hello = claim.hello_body
        self._routes = (
            self._make_route_lane(hello) if hello.config_version or hello.HasField("probe_listener") else None
        )
        self._silent = False
        self.held_back = False
        """Whether the reader takes nothing for now: what the node says, pongs among it, is not heard."""
        self._writing = False
        self._patience = asyncio.timeout(None)  # with the peer's reading; runs from the end of the stream on

    def greet(self, welcome: gateway_pb2.Welcome) -> None:
        """Say the first thing; then `run`."""
        self.send(gateway_pb2.ServerControl(welcome=welcome))

    async def run(self) -> None:
        """Serve the stream until it ends.

        Raises:
            Refusal: how the call is to be aborted; returns when the node ended the stream itself.
        """
        reader = asyncio.create_task(self._read())  # never cancelled: it ends with the call
        self.bundles.offer()
        turn = self._turn
        if turn.floor_at_ms or turn.audit_chain:  # it started over once: what lies behind it is told on every stream
            floor = self._rooms.trust.sign_floor(  # by the authority of the bundle that was just sent
                self.node_id,
                seq_floor=turn.seq_floor,
                intents_after_ms=turn.floor_at_ms,
                audit_chain=turn.audit_chain,
            )
            self.send(gateway_pb2.ServerControl(floor=floor))
        self.membership.start()
        self._credentials.start()
        if self._routes is not None or self._rooms.routes.concerns(self.node_id):
            self.about_routes(RouteLane.start)
        self.commands.wake()
        self.commands.wake_cancels()
        try:
            async with self._patience:
                self._writing = True
                await self._write()
        except TimeoutError:
            pass  # what was left to say goes unsaid
        finally:
            self._writing = False
            self.end(None)
            self._telemetry.close()
            del reader
        if self._ending is not None:
            raise self._ending

    async def _write(self) -> None:
        while (body := await self._outbox.next()) is not None:
            sealed = self._sealer.seal(body.SerializeToString())
            self.pulse.spoke |= not body.HasField("ping")
            if not await self._transport.write(gateway_pb2.ServerFrame(control=sealed)):
                return
            del body, sealed  # nor is the last frame kept while there is none to send

    def send(self, frame: gateway_pb2.ServerControl, size_bytes: int = 0) -> None:
        """Queue a control frame of about `size_bytes`; 0 has them counted. A peer that let the queue fill up has
        stopped reading and loses its stream."""
        if not self._outbox.put(frame, size_bytes or frame.ByteSize()) and not self._ended:
            self.end(Refusal(Reason.HEARTBEAT_LOST, "the node stopped reading its stream: it may connect again"))

    def fall_silent(self) -> None:
        """Send nothing more of what only the newest stream of a node is sent."""
        self._silent = True
        self.commands.stop()
        if self._routes is not None:
            self._routes.stop()

    def goaway(self, goaway: gateway_pb2.ControlGoaway) -> None:
        """Ask the node to leave in order."""
        name = gateway_pb2.GoawayReason.Name(goaway.reason).removeprefix("GOAWAY_REASON_")
        self._rooms.metrics.streams.goaways.labels(name).inc()
        self.send(gateway_pb2.ServerControl(goaway=goaway))

    def end(self, refusal: Refusal | None) -> None:
        """End the stream, once; the first reason stands."""
        if self._ended:
            return
        self._ended = True
        self._ending = refusal
        if refusal is not None:
            self.close_reason = str(refusal.reason)
            self.send(
                gateway_pb2.ServerControl(error=gateway_pb2.StreamError(reason=refusal.reason, detail=refusal.detail))
            )
        self.fall_silent()
        self._outbox.close()
        if self._writing:
            self._patience.reschedule(asyncio.get_running_loop().time() + _LAST_WRITE_S)

    def beat(self, now: float, now_ms: int, interval_ms: int) -> None:
        """Ping, or note that what the stream said since the last beat shows both ends alive.

        Args:
            now: monotonic seconds.
            now_ms: Unix milliseconds.
            interval_ms: until the next beat.
        """
        number = self.pulse.beat(now, interval_ms)
        if not number:
            self._note_alive()
            return
        ping = gateway_pb2.Ping(
            number=number, server_time_ms=now_ms, last_rtt_us=self.pulse.last_rtt_us, interval_ms=interval_ms
        )
        self.send(gateway_pb2.ServerControl(ping=ping))

    @property
    def ended(self) -> bool:
        """Whether the end has begun."""
        return self._ended

    def offer_bundle(self) -> None:
        """A bundle was published: send what leads to it, and again what an authority before it signed."""
        self.bundles.offer()
        if self._routes is not None:
            self._routes.signed_by(self._rooms.trust.bundle.version[0])

    async def wait_recorded(self) -> None:
        """Return once no report of this stream is being committed."""
        await self._reports.wait_idle()

    def refresh_membership(self) -> None:
        """Something about the node changed: read its row again, and behind nothing that the node told: it must not be
        able to put off that it is sent away."""
        if self._deciding is None:
            self._deciding = Pump(self._refresh_membership, self._rooms.clock, self._failed)
        self._deciding.kick()

    async def _refresh_membership(self) -> None:
        await self.membership.refresh()
        await self._credentials.refresh()

    async def _read(self) -> None:
        try:
            while not self._ended:
                frame = await self._transport.read()
                if frame is None:
                    return
                if isinstance(frame, BadFrame):
                    raise frame.refusal()
                self._take(frame)
                if self._reports.full or self._notices.full:
                    await self._wait_room()
        except Refusal as refusal:
            self.end(refusal)
        except Exception as error:  # noqa: BLE001 - a bug must end this stream loudly, not silence it
            self.end(incident("stream", error))
        finally:
            self.end(None)

    async def _wait_room(self) -> None:
        self.held_back = True
        await self._reports.wait_room()
        if self._notices.full:
            await self._notices.wait_idle()
        self.held_back = False
        self.pulse.forgive()

    def _take(self, frame: gateway_pb2.NodeFrame) -> None:
        self.pulse.heard = True
        kind = frame.WhichOneof("frame")
        if kind == "telemetry":
            self._telemetry.ingest_nowait(frame.telemetry)
            return
        if kind != "control":
            raise Refusal(Reason.MALFORMED, "a second hello on one stream")
        try:
            body = self._opener.open(frame.control)
        except ChannelError as error:
            raise Refusal(Reason.BAD_PROOF, f"a control frame was refused: {error}") from error
        control = frames.node_control(body)
        if control.WhichOneof("body") in _OF_ROUTES:
            self.about_routes(lambda routes: routes.take(control))
        else:
            self._dispatch(control, len(body))

    def _dispatch(self, control: gateway_pb2.NodeControl, size_bytes: int) -> None:
        kind = control.WhichOneof("body")
        rooms = self._rooms
        if kind == "reports":
            self._take_reports(control.reports, size_bytes)
            return
        notice = partial(self._notices.put, size_bytes=size_bytes)
        if kind == "pong":
            self._take_pong(control.pong)
        elif kind == "statement_refused":
            self._take_statement_refused(control.statement_refused, size_bytes)
        elif kind == "command_refused":
            self.commands.answered([control.command_refused.monotonic_seq])
            notice(lambda: rooms.commands.record_command_refused(self.node_id, self.epoch, control.command_refused))
        elif kind == "cancel_result":
            notice(lambda: rooms.commands.record_cancel_result(self.node_id, self.epoch, control.cancel_result))
        elif kind == "reauth_proof":
            notice(lambda: self._reauth(control.reauth_proof))
        elif kind == "drained":
            notice(lambda: self.membership.drained(control.drained))
        elif kind == "bundle_applied":
            self._take_bundle_applied(control.bundle_applied)
            notice(lambda: rooms.nodes.note_bundle(self.node_id, self.epoch, control.bundle_applied))
        elif kind == "audit":
            self._take_audit(control.audit)
        elif kind in ("node_key_rotation", "rotation_answer", "certificate_request"):
            notice(lambda: self._credentials.take(control))
        elif kind == "goodbye":
            self.close_reason = rules.goodbye(control.goodbye.reason)
            self.end(None)

    def about_routes(self, do: Callable[[RouteLane], None]) -> None:
        """Have the lane of routes do something; it is made with the first thing that it has to do."""
        if self._silent:
            return
        if self._routes is None:
            self._routes = self._make_route_lane(gateway_pb2.HelloBody())
        do(self._routes)

    def _make_route_lane(self, hello: gateway_pb2.HelloBody) -> RouteLane:
        return RouteLane(
            self.node_id,
            self.epoch,
            self._rooms.routes,
            self._rooms.clock,
            hello,
            generation=self._rooms.trust.bundle.version[0],
            held=self._rooms.held_reports,
            metrics=self._rooms.metrics.streams,
            send=self.send,
            failed=self._failed,
        )

    def _take_bundle_applied(self, applied: gateway_pb2.BundleApplied) -> None:
        self.bundles.applied(applied)
        if self._routes is not None:
            self._routes.bundle_taken()

    def _take_audit(self, rows: gateway_pb2.AuditRows) -> None:
        if self._audit is None:
            self._audit = AuditLane(
                self.node_id,
                self._rooms.node_audit,
                self._rooms.clock,
                epoch=self.epoch,
                opened_chain=self._turn.audit_chain,
                send=self.send,
                failed=self._failed,
            )
        self._audit.put(rows)

    def _take_reports(self, reports: command_pb2.ReportList, size_bytes: int) -> None:
        if not reports.reports:
            raise Refusal(Reason.MALFORMED, "an empty list of reports")
        self._rooms.metrics.commands.reports.inc(len(reports.reports))
        seqs = [report.monotonic_seq for report in reports.reports]
        self._accepted_seq = max(self._accepted_seq, *seqs)
        self._note_alive()
        self.commands.answered(seqs)
        self._reports.put(reports, size_bytes)

    def _take_statement_refused(self, refused: command_pb2.StatementRefused, size_bytes: int) -> None:
        self.bundles.refused(refused.bundle_version)
        self.commands.statement_refused(refused)
        commands = self._rooms.commands
        self._notices.put(lambda: commands.record_statement_refused(self.node_id, self.epoch, refused), size_bytes)

    def _take_pong(self, pong: gateway_pb2.Pong) -> None:
        clock = self._rooms.clock
        rtt_us = self.pulse.take_pong(pong.number, clock.monotonic())
        self._clock_offset_ms = pong.node_time_ms - clock.now_ms() + rtt_us // 2000
        self._note_alive()

    def _note_alive(self) -> None:
        self._rooms.nodes.note_alive_nowait(
            self.node_id,
            epoch=self.epoch,
            rtt_us=self.pulse.last_rtt_us,
            clock_offset_ms=self._clock_offset_ms,
            accepted_seq=self._accepted_seq,
        )

    async def _reauth(self, proof: trust_pb2.Signed) -> None:
        try:
            expires_at_ms = await self._rooms.sessions.reauth(self._session, self.stream_id, proof)
        except Refusal as refusal:
            if refusal.reason not in rules.ASK_AGAIN:
                raise
            self.pulse.reauth_asked = False  # the session lasts a while yet, and the next beat asks again
            return
        self.pulse.session_renewed(expires_at_ms)

    def _failed(self, error: Exception) -> None:
        if isinstance(error, Refusal) and error.reason is Reason.SUPERSEDED and not self._ended:
            self.fall_silent()
            self.membership.doubt(error)  # a takeover leaves this stream its last words, wherever it was welcomed
            return
        self.end(error if isinstance(error, Refusal) else incident("stream", error))
