"""Walks paths: calls the next node of one, and judges what comes back. Source and relay call alike."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet_node.routes import walk_rules
from fleet_node.routes.peer_channels import MAX_CHANNELS, CallFailed, PeerChannels
from fleet_node.routes.probe_rules import AHEAD_MS, MAX_AHEAD_MS, NONCE_BYTES, Probe, check_path, request
from fleet_node.routes.view import RouteView
from fleet_node.routes.walk_rules import BadRecordError, Failure, Onward, Testimony, WalkResult

log = get_logger(__name__)


class ProbeCaller:
    """Calls peers' probe listeners.

    Args:
        view: the snapshot in force.
        clock: measures round trips.
        max_channels: connections to peers that are kept open.
    """

    def __init__(self, view: RouteView, clock: Clock, max_channels: int = MAX_CHANNELS) -> None:
        self._view = view
        self._channels = PeerChannels(clock, view.whose, max_channels)

    async def walk(self, route_id: str, generation: int, path: Sequence[str], timeout_s: float) -> WalkResult:
        """Walk a path whose source is this node; what goes wrong is part of the result, nothing is raised.

        Args:
            route_id: route.
            generation: of the route.
            path: node ids from this node to the destination.
            timeout_s: for all of it, connecting included; at most 10 s count.
        """
        takes_ms = min(int(timeout_s * 1000), MAX_AHEAD_MS)
        probe = Probe(
            self._view.cluster_id,
            route_id,
            generation,
            tuple(path),
            secrets.token_bytes(NONCE_BYTES),
            self._view.server_now_ms() + max(takes_ms, AHEAD_MS),
        )
        try:
            check_path(probe.path)
            onward = await self.onward(probe, 1, takes_ms / 1000)
        except Refusal as refusal:
            onward = walk_rules.refused(refusal.reason)
        except Exception as error:
            log.error("walk_failed", route_id=route_id, exc_info=error)
            onward = walk_rules.refused(Reason.INTERNAL)
        return walk_rules.judge(probe, onward)

    async def onward(self, probe: Probe, hop_index: int, timeout_s: float) -> Onward:
        """Call the node at `hop_index` of a path, as the one before it."""
        peer = self._view.peer(probe.path[hop_index])
        if peer is None:
            return Onward(walk_rules.UNREACHABLE, failure=Failure.NO_ENDPOINT)
        try:
            reply = await self._channels.call(peer, request(probe, hop_index, self._view.signer), timeout_s)
            testimony = self._verified(reply.raw, probe, hop_index)
        except CallFailed as failed:
            return failed.onward
        except BadRecordError as error:
            log.warning("probe_answer_refused", node_id=peer.node_id, route_id=probe.route_id, why=str(error))
            return Onward(walk_rules.BAD_RECORD, failure=Failure.BAD_RECORD)
        return Onward(walk_rules.ANSWERED, elapsed_us=reply.elapsed_us, testimony=testimony)

    async def prune(self) -> None:
        """Close connections to peers that the snapshot does not name any more, or names with other endpoints."""
        await self._channels.prune(self._view.peer)

    async def close(self) -> None:
        """Close all connections; walks under way end."""
        await self._channels.close()

    def _verified(self, raw: bytes, probe: Probe, hop_index: int) -> Testimony:
        """The records of an answer; a node whose key is being replaced may sign with the one before.

        Raises:
            BadRecordError: one of them does not verify.
        """
        try:
            return walk_rules.read_answer(raw, probe, hop_index, self._key_of)
        except BadRecordError:
            if not any(map(self._view.former_key, probe.path[hop_index:])):
                raise
            return walk_rules.read_answer(raw, probe, hop_index, self._former_key_of)

    def _former_key_of(self, node_id: str) -> bytes:
        return self._view.former_key(node_id) or self._key_of(node_id)

    def _key_of(self, node_id: str) -> bytes:
        peer = self._view.peer(node_id)
        return peer.identity_key if peer is not None else b""
