"""One stream of this node, from hello to its end.

Mental model
    One reader task reads and never waits for the journal: pings are answered while a commit is under way. What the
    server signed goes through the inbox.
    One writer pulls from lanes by priority (`lanes`). Only the writer seals frames, so counters grow in the order of
    the wire. The stream ends once, with the first reason; whatever was not acknowledged goes out again on the next
    stream.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError

from fleet import status
from fleet.channel import ChannelError, node_end
from fleet.clock import Clock, ServerTime
from fleet.envelope import Domain
from fleet.errors import Reason, Refusal
from fleet.sequence import StreamContext
from fleet.v1 import gateway_pb2, session_pb2
from fleet_node.link import rules
from fleet_node.link.caller import GatewayCaller
from fleet_node.link.credentials import Credentials, Shown
from fleet_node.link.handshake import Session
from fleet_node.link.hello import SelfDescription, make_hello
from fleet_node.link.inbox import Inbox
from fleet_node.link.lanes import Lanes
from fleet_node.link.ports import Ports

_WELCOME_TIMEOUT_S = 10.0
_FLUSH_S = 2.0
_SIGNED = frozenset(
    ("commands", "cancel", "trust_bundle", "floor", "config", "lease", "api_key", "rotate_keys", "node_keys")
)
"""What goes through the inbox."""


@dataclass(slots=True)
class Heard:
    """What the last ping told; round trip in microseconds, offset in milliseconds."""

    rtt_us: int = 0
    offset_ms: int = 0


class Connection:
    """See the module's mental model. Call `open`, then `run`; `leave` ends it in order."""

    def __init__(
        self,
        *,
        caller: GatewayCaller,
        session: Session,
        shown: Shown,
        credentials: Credentials,
        ports: Ports,
        about: SelfDescription,
        clock: Clock,
        server_time: ServerTime,
    ) -> None:
        self.caller = caller
        self.welcome = gateway_pb2.Welcome()
        self.heard = Heard()
        self.lingering: set[asyncio.Task[None]] = set()
        self.goaway: asyncio.Future[gateway_pb2.ControlGoaway] = asyncio.get_running_loop().create_future()
        self.renewing = False  # the goaway is this node's own
        self._leaving = False
        self._session = session
        self._shown = shown
        self._membership = shown.membership
        self._credentials = credentials
        self._ports = ports
        self._about = about
        self._clock = clock
        self._server_time = server_time
        self._sealer, self._opener = node_end(session.frame_keys)
        self._lanes = Lanes()
        self._wake = asyncio.Event()
        self._ending: Refusal | None = None
        self._ended = False
        self._heard_at = 0.0
        self._inbox: Inbox | None = None
        self._call = caller.connect(session.metadata(shown.membership.api_key))

    async def open(self, takeover_of: str) -> None:
        """Say hello and wait for the welcome.

        Raises:
            Refusal: the server refused the stream, or said nothing for 10 s.
        """
        hello, binding = make_hello(
            self._ports,
            self._about,
            session=self._session,
            shown=self._shown,
            clock=self._clock,
            takeover_of=takeover_of,
        )
        reading = asyncio.create_task(self._read_frame())  # never cancelled (grpc/grpc#43360)
        await self._write(gateway_pb2.NodeFrame(hello=hello))
        done, _ = await asyncio.wait({reading}, timeout=_WELCOME_TIMEOUT_S)
        frame = reading.result() if done else None
        if frame is None:
            raise await self._not_welcomed(answered=bool(done))
        self.welcome = self._open_welcome(frame)
        self._server_time.observe(self.welcome.server_time_ms)
        await self._ports.ratchet.store(self.welcome.next_ratchet)
        self._heard_at = self._clock.monotonic()
        self._open_rooms(binding)
        self._ask_certificate()

    def _open_rooms(self, binding: bytes) -> None:
        context = StreamContext(self._membership.cluster_id, self._membership.node_id, binding)
        routes = self._ports.routes
        self._lanes.commands = commands = self._ports.commands.opened(context, self.welcome, self)
        self._lanes.routes = routes.opened(self) if routes is not None else None
        self._inbox = Inbox(
            commands,
            self._ports.trust,
            self._credentials,
            self._lanes.routes,
            answer=self.send_control,
            renew=self.renew,
            failed=self._end,
        )
        self._lanes.telemetry = self._ports.telemetry.opened(self.welcome.max_telemetry_bytes or 65536, self)

    async def run(self) -> Refusal | None:
        """Serve the stream until it ends; why it ended, or None when both sides wanted it.

        What was being journaled then goes on in `lingering`: waiting for a full queue would hold up the next stream,
        and a cancelled commit would leave open whether it happened.
        """
        reader = asyncio.create_task(self._read())
        self.lingering = self._inbox.start() if self._inbox is not None else set()
        watchdog = asyncio.create_task(self._watch())
        try:
            await self._send()
        finally:
            self._end(None)
            watchdog.cancel()
            self._lanes.close()
            refusal = await self._finish()
            await asyncio.wait({reader, watchdog})
        if self._ending is None or (refusal is not None and refusal.reason is self._ending.reason):
            return refusal  # the call's status: it knows how long to stay away, too
        return self._ending  # what the server said under a MAC

    def leave(self, reason: str) -> None:
        """Send what is ready, say goodbye, and end."""
        if not self._ended and not self._lanes.said_goodbye:
            self._lanes.put_goodbye(reason)
            self._wake.set()

    def send_control(self, control: gateway_pb2.NodeControl) -> None:
        """Queue a control frame before everything else."""
        if self._ended:
            return
        if self._lanes.full:
            self._end(Refusal(Reason.HEARTBEAT_LOST, "the server stopped reading this stream"))
            return
        self._lanes.put_control(control)
        self._wake.set()

    def wake(self) -> None:
        """A room has more to give."""
        self._wake.set()

    def renew(self) -> None:
        """Move to a new stream, as if the server had asked for it, which it may do yet."""
        if not self._leaving and not self.goaway.done():
            self.renewing = True
            self.goaway.set_result(gateway_pb2.ControlGoaway(reason=gateway_pb2.GOAWAY_REASON_REBALANCE, resume=True))

    def take_goaway(self) -> gateway_pb2.ControlGoaway:
        """The newest goaway; `goaway` is the next one from then on, which takes the place of this one."""
        newest = self.goaway.result()
        self.goaway, self._leaving = asyncio.get_running_loop().create_future(), True
        return newest

    def _open_welcome(self, frame: gateway_pb2.ServerFrame) -> gateway_pb2.Welcome:
        """The first frame carries a MAC like every other: whoever terminates TLS must not set this node's clock."""
        try:
            control = gateway_pb2.ServerControl.FromString(self._opener.open(frame.control))
        except (ChannelError, DecodeError) as error:
            self._call.cancel()
            raise Refusal(Reason.BAD_PROOF, f"the welcome was refused: {error}") from error
        if control.WhichOneof("body") != "welcome":
            self._call.cancel()
            raise Refusal(Reason.MALFORMED, "the server's first frame is no welcome")
        return control.welcome

    async def _not_welcomed(self, *, answered: bool) -> Refusal:
        if not answered:
            self._call.cancel()
            return Refusal(Reason.UNAVAILABLE, "the server took the stream and did not welcome it within 10 s")
        refusal = await self.caller.stream_failure(self._call)
        self._call.cancel()
        return refusal or Refusal(Reason.UNAVAILABLE, "the server ended the stream instead of welcoming it")

    async def _read_frame(self) -> gateway_pb2.ServerFrame | None:
        try:
            frame = await self._call.read()
        except (grpc.aio.AioRpcError, asyncio.CancelledError, asyncio.InvalidStateError):
            return None
        return frame if isinstance(frame, gateway_pb2.ServerFrame) else None

    async def _write(self, frame: gateway_pb2.NodeFrame) -> bool:
        try:
            await self._call.write(frame)
        except (grpc.aio.AioRpcError, asyncio.CancelledError, asyncio.InvalidStateError):
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return False
        return True

    async def _send(self) -> None:
        while not self._ended:
            self._wake.clear()
            frame = self._next_frame()
            if frame is None:
                await self._wake.wait()
            elif not await self._write(frame):
                self._end(None)
            elif frame.WhichOneof("frame") == "control" and self._lanes.done:
                return

    def _next_frame(self) -> gateway_pb2.NodeFrame | None:
        if (control := self._lanes.next_control()) is not None:
            return gateway_pb2.NodeFrame(control=self._sealer.seal(control))
        batch = self._lanes.next_telemetry()
        return gateway_pb2.NodeFrame(telemetry=batch) if batch is not None else None

    async def _read(self) -> None:
        try:
            while (frame := await self._read_frame()) is not None:
                self._take(frame)
        except (ChannelError, DecodeError) as error:
            self._end(Refusal(Reason.BAD_PROOF, f"a frame from the server was refused: {error}"))
        finally:
            self._end(None)

    def _take(self, frame: gateway_pb2.ServerFrame) -> None:
        if frame.WhichOneof("frame") != "control":
            raise ChannelError("a frame that is no control frame arrived after the welcome")
        control = gateway_pb2.ServerControl.FromString(self._opener.open(frame.control))
        self._heard_at = self._clock.monotonic()
        kind = control.WhichOneof("body")
        if kind in _SIGNED:
            self._take_signed(control, len(frame.control.body))
        elif kind == "result_ack":
            self._ports.commands.acked(control.result_ack.report_no)
        elif kind == "telemetry_ack":
            self._ports.telemetry.acked(control.telemetry_ack.batch_seq)
        elif kind == "audit_ack":
            self._ports.commands.audit_acked(control.audit_ack)
        elif kind == "ping":
            self._answer_ping(control.ping)
        elif kind in ("reauth", "certificate"):
            self._take_credential(control)
        elif kind == "drain":
            self._ports.commands.drain(control.drain)
        elif kind == "goaway":
            self._take_goaway(control.goaway)
        elif kind == "error":
            self._ending = status.of_stream(control.error)

    def _take_goaway(self, goaway: gateway_pb2.ControlGoaway) -> None:
        self.renewing = False
        if self.goaway.done():  # and not taken yet: whoever waits for it is woken, and reads this one
            self.goaway = asyncio.get_running_loop().create_future()
        self.goaway.set_result(goaway)

    def _take_signed(self, control: gateway_pb2.ServerControl, size_bytes: int) -> None:
        if control.commands.reports_acked:
            self._ports.commands.acked(control.commands.reports_acked)
        if self._inbox is not None:
            self._inbox.put_nowait(control, size_bytes)

    def _answer_ping(self, ping: gateway_pb2.Ping) -> None:
        self._server_time.observe(ping.server_time_ms)
        self.heard.rtt_us, self.heard.offset_ms = ping.last_rtt_us, self._server_time.offset_ms()
        if ping.interval_ms:
            self.welcome.heartbeat_interval_ms = ping.interval_ms
        pong = gateway_pb2.Pong(number=ping.number, server_time_ms=ping.server_time_ms)
        pong.node_time_ms = self._clock.now_ms()
        self.send_control(gateway_pb2.NodeControl(pong=pong))
        self._ask_certificate()

    def _take_credential(self, control: gateway_pb2.ServerControl) -> None:
        mutual_tls = self._ports.mutual_tls
        if control.HasField("reauth"):
            self._answer_reauth(control.reauth)
        elif mutual_tls is not None and mutual_tls.take(control.certificate):
            self.renew()

    def _ask_certificate(self) -> None:
        mutual_tls = self._ports.mutual_tls
        request = mutual_tls.request(certified=self.caller.certified) if mutual_tls is not None else None
        if request is not None:
            self.send_control(gateway_pb2.NodeControl(certificate_request=request))

    def _answer_reauth(self, reauth: gateway_pb2.Reauth) -> None:
        statement = session_pb2.ReauthStatement(challenge=reauth.challenge, stream_id=self.welcome.stream_id)
        proof = self._credentials.preferred_keys.identity.sign(Domain.REAUTH, statement.SerializeToString())
        self.send_control(gateway_pb2.NodeControl(reauth_proof=proof))

    async def _watch(self) -> None:
        while not self._ended:
            allowed_s = rules.heartbeat_deadline_s(self.welcome.heartbeat_interval_ms)
            left_s = self._heard_at + allowed_s - self._clock.monotonic()
            if left_s <= 0:
                self._end(
                    Refusal(
                        Reason.HEARTBEAT_LOST,
                        f"nothing heard for {allowed_s:.1f} s: the server or the way there is gone",
                    )
                )
                return
            await self._clock.sleep(left_s)

    def _end(self, refusal: Refusal | None) -> None:
        if self._ended:
            return
        self._ended = True
        if self._inbox is not None:
            self._inbox.close()
        if refusal is not None:
            self._ending = self._ending or refusal
            self._call.cancel()  # a peer that stopped reading would hold the writer for ever
        self._wake.set()

    async def _finish(self) -> Refusal | None:
        """End the call within bounds: half-close, give the server a moment, then cancel."""
        if self._lanes.said_goodbye:
            try:
                async with asyncio.timeout(_FLUSH_S):
                    await self._call.done_writing()
                    return await self.caller.stream_failure(self._call)
            except (TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                self._call.cancel()
                return None
        if not self._call.done():
            self._call.cancel()
            return None
        return await self.caller.stream_failure(self._call)
