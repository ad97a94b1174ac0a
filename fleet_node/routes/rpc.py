"""Service Probe: answers and relays walks, and nothing else (docs/protocol.md, "Probes").

What a stranger can cause comes first and costs least: rates by address before a byte is parsed, the request's shape and
the rate of who it says calls before a signature is verified, and what the snapshot says only to who has proven itself.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from dataclasses import replace
from typing import Any, NoReturn

import grpc

from fleet import status
from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.v1 import route_pb2
from fleet_node.routes import walk_rules
from fleet_node.routes.door import Door, Passage
from fleet_node.routes.intake import Intake, ProbeLimits
from fleet_node.routes.probe_caller import ProbeCaller
from fleet_node.routes.probe_rules import Asked, check_proof, check_route, check_shape, read_request
from fleet_node.routes.view import RouteView
from fleet_node.routes.walk_rules import Onward

log = get_logger(__name__)

SERVICE = "fleet.v1.Probe"
_ONWARD_SHARE = 0.8
"""Of the time that is left: a relay testifies that the next node does not answer before its own caller gives up."""

Context = grpc.aio.ServicerContext[bytes, bytes]


class ProbeService:
    """Takes walks from peers.

    Args:
        view: the snapshot in force.
        caller: calls the next node.
        clock: paces.
        limits: how much is taken.
        door: through which calls came; learns which of them were peers'.
    """

    def __init__(self, view: RouteView, caller: ProbeCaller, clock: Clock, limits: ProbeLimits, door: Door) -> None:
        self._view = view
        self._caller = caller
        self._clock = clock
        self._door = door
        self._intake = Intake(limits)
        self._read_s = limits.read_s
        self.answered = 0
        """Walks that were answered, as an end or as a relay."""
        self.refused: Counter[Reason] = Counter()
        """Walks that were refused, by reason."""

    def handlers(self) -> grpc.GenericRpcHandler:
        """What `grpc.aio.Server.add_generic_rpc_handlers` takes. Requests stay bytes until they are let in.

        On the wire a stream of one request is a unary call. Registered as that, gRPC would hand a call over once its
        request is whole, and keep the rest of those that never are for as long as their connection lives.
        """
        return grpc.method_handlers_generic_handler(SERVICE, {"Walk": grpc.stream_unary_rpc_method_handler(self._walk)})

    async def _walk(self, _: object, context: Context) -> bytes:
        try:
            passage = self._door.of(context.peer())
            if passage is None:  # whoever calls gRPC past the door is on this machine, or gone already
                raise Refusal(Reason.FOREIGN, "call the address that the listener is known by")
            self._intake.admit_call(passage.address, self._clock.monotonic(), passage.node_id)
            _require_tls13(context)
            return await self._take(await self._read(context), passage, context)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Refusal as refusal:
            await self._abort(context, refusal)
        except Exception as error:
            incident = secrets.token_hex(6)
            log.error("unexpected_error", where="Walk", incident=incident, exc_info=error)
            await self._abort(
                context, Refusal(Reason.INTERNAL, f"the node met an error of its own (incident {incident})")
            )

    async def _abort(self, context: Context, refusal: Refusal) -> NoReturn:
        self.refused[refusal.reason] += 1
        code, message, trailing = status.encode(refusal)
        await context.abort(code, message, trailing)
        raise AssertionError("abort returned")

    async def _read(self, context: Context) -> bytes:
        reading = asyncio.create_task(_next_message(context))  # never cancelled: the abort ends it (grpc/grpc#43360)
        await asyncio.wait({reading}, timeout=self._read_s)
        if not reading.done() or not isinstance(raw := reading.result(), bytes):
            raise Refusal(Reason.MALFORMED, "no whole probe came with the call: look at the line")
        return raw

    async def _take(self, raw: bytes, passage: Passage, context: Context) -> bytes:
        with self._intake.working():
            asked = self._checked(raw, passage)
            with self._intake.working_for(asked.caller):
                onward = None if asked.is_last else await self._relay(asked, context)
            answer = walk_rules.answer(asked, onward, self._view.node_id, self._view.signer)
        self.answered += 1
        return answer

    def _checked(self, raw: bytes, passage: Passage) -> Asked:
        view, now_ms = self._view, self._view.server_now_ms()
        asked = read_request(raw)
        probe = asked.probe
        check_shape(asked, cluster_id=view.cluster_id, node_id=view.node_id, now_ms=now_ms)
        caller = view.peer(asked.caller)
        if caller is None:
            raise Refusal(Reason.FOREIGN, "the node before this one in the path is no peer in this node's snapshot")
        proven = passage.node_id == asked.caller
        self._intake.admit_caller(passage.address, asked.caller, self._clock.monotonic(), proven=proven)
        self._check_proof(asked, caller)
        passage.prove(asked.caller)
        check_route(asked, view.configs_of(probe.route_id), lambda: view.holds_lease(probe.route_id))
        self._intake.nonces.add(asked.caller, probe.nonce, probe.deadline_ms, now_ms)
        return asked

    def _check_proof(self, asked: Asked, caller: route_pb2.Peer) -> None:
        try:
            check_proof(asked, caller)
        except Refusal:
            if not (former_key := self._view.former_key(caller.node_id)):
                raise
            check_proof(asked, route_pb2.Peer(node_id=caller.node_id, identity_key=former_key))

    async def _relay(self, asked: Asked, context: Context) -> Onward:
        left_s = (asked.probe.deadline_ms - self._view.server_now_ms()) / 1000
        caller_waits_s = context.time_remaining()
        if caller_waits_s is not None:
            left_s = min(left_s, caller_waits_s)
        began = self._clock.monotonic()
        onward = await self._caller.onward(asked.probe, asked.hop_index + 1, max(0.0, left_s) * _ONWARD_SHARE)
        # All of it, connecting and waiting for nobody too: what is left of the caller's time is the hop to this node.
        return replace(onward, elapsed_us=round((self._clock.monotonic() - began) * 1e6))


async def _next_message(context: Context) -> object:
    try:
        return await context.read()
    except (grpc.aio.BaseError, grpc.aio.AioRpcError):
        return None  # the call ended under the read


def _require_tls13(context: Context) -> None:
    """gRPC has no setting for TLS 1.3 only, so each call checks.

    Raises:
        Refusal: PROTOCOL_TOO_OLD.
    """
    versions: Any = context.auth_context().get("ssl_tls_version", ())
    if b"TLSv1.3" not in tuple(versions):
        raise Refusal(Reason.PROTOCOL_TOO_OLD, "TLS 1.3 is required: update the caller's TLS library")
