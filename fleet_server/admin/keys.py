"""Admin calls about the cluster's keys: authority, command keys, and which nodes hold which trust bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fleet.tls import certificate_sha256
from fleet.v1 import admin_pb2, session_pb2
from fleet_server.admin.access import Caller
from fleet_server.nodes.service import NodeService
from fleet_server.trust.phases import KeyRecord
from fleet_server.trust.rollout import Rollout
from fleet_server.trust.rotation import KeyRotation
from fleet_server.trust.service import TrustService
from fleet_server.trust.succession import AuthorityRecord, AuthorityRotation


class KeysApi:
    """Keys as operators see and rotate them. Never a private part."""

    def __init__(
        self, trust: TrustService, rotation: KeyRotation, succession: AuthorityRotation, nodes: NodeService
    ) -> None:
        self._trust = trust
        self._rotation = rotation
        self._succession = succession
        self._nodes = nodes

    async def list_keys(self, _: Caller, __: admin_pb2.ListKeysRequest) -> admin_pb2.ListKeysResponse:
        """Authority, command keys, and how many nodes hold which bundle."""
        await self._trust.watch.look()  # another replica may have changed them a moment ago
        trust, bundle = self._trust, self._trust.bundle
        return admin_pb2.ListKeysResponse(
            cluster_id=trust.cluster_id,
            authority_key=trust.authority.public_key,
            authority_generation=trust.authority_generation,
            command_keys=[_key_view(used.record, used.nodes) for used in await self._rotation.in_use()],
            bundle_version=_version(bundle.version),
            bundle_expires_at_ms=bundle.expires_at_ms,
            holders=_holders(await self._nodes.bundle_holders()),
            tls_ca_sha256=certificate_sha256(bundle.tls_ca_der[0]) if bundle.tls_ca_der else b"",
        )

    async def prepare(self, caller: Caller, request: admin_pb2.PrepareKeyRequest) -> admin_pb2.PrepareKeyResponse:
        """Make the next key of a scope."""
        return admin_pb2.PrepareKeyResponse(key=_key_view(await self._rotation.prepare(caller.name, request.site)))

    async def activate(self, caller: Caller, request: admin_pb2.ActivateKeyRequest) -> admin_pb2.ActivateKeyResponse:
        """Sign with a PREPARED key from now on."""
        record, far = await self._rotation.activate(caller.name, request.key, override=request.override_reason)
        return admin_pb2.ActivateKeyResponse(key=_key_view(record), rollout=_rollout_view(far))

    async def retire(self, caller: Caller, request: admin_pb2.RetireKeyRequest) -> admin_pb2.RetireKeyResponse:
        """Let a key sign nothing new."""
        verify_for_ms = request.verify_for_s * 1000
        record = await self._rotation.retire(caller.name, request.key, verify_for_ms=verify_for_ms)
        return admin_pb2.RetireKeyResponse(key=_key_view(record))

    async def revoke(self, caller: Caller, request: admin_pb2.RevokeKeyRequest) -> admin_pb2.RevokeKeyResponse:
        """Let a key verify nothing any more."""
        record = await self._rotation.revoke(
            caller.name, request.key, reason=request.reason, stop_commands=request.stop_commands
        )
        return admin_pb2.RevokeKeyResponse(key=_key_view(record))

    async def rollout(self, _: Caller, __: admin_pb2.GetKeyRolloutRequest) -> admin_pb2.GetKeyRolloutResponse:
        """How far PREPARED keys have come."""
        await self._trust.watch.look()
        rollouts = await self._rotation.rollouts()
        return admin_pb2.GetKeyRolloutResponse(
            bundle_version=_version(self._trust.bundle.version),
            holders=_holders(await self._nodes.bundle_holders()),
            keys=map(_rollout_view, rollouts),
        )

    async def list_authorities(
        self, _: Caller, __: admin_pb2.ListAuthoritiesRequest
    ) -> admin_pb2.ListAuthoritiesResponse:
        """Every authority that the cluster had, and the chain that proves who followed whom."""
        await self._trust.watch.look()
        found = await self._succession.succession()
        holders = await self._nodes.bundle_holders()
        nodes: Counter[int] = Counter()
        for (generation, _number), count in holders.items():
            nodes[generation] += count
        return admin_pb2.ListAuthoritiesResponse(
            cluster_id=self._trust.cluster_id,
            authorities=[_authority_view(record, nodes[record.generation]) for record in found.records],
            chain=found.chain,
        )

    async def rotate_authority(
        self, caller: Caller, request: admin_pb2.RotateAuthorityRequest
    ) -> admin_pb2.RotateAuthorityResponse:
        """Let a new authority follow the one in force."""
        record = await self._succession.rotate(
            caller.name, from_generation=request.from_generation, reason=request.reason
        )
        return admin_pb2.RotateAuthorityResponse(authority=_authority_view(record))


def _authority_view(record: AuthorityRecord, nodes: int = 0) -> admin_pb2.AuthorityView:
    return admin_pb2.AuthorityView(
        generation=record.generation,
        public_key=record.public_key,
        created_at_ms=record.created_at_ms,
        nodes=nodes,
    )


def _key_view(record: KeyRecord, nodes: int = 0) -> admin_pb2.CommandKeyView:
    return admin_pb2.CommandKeyView(
        key_id=record.key_id,
        phase=record.key.phase,
        site=record.key.site,
        not_before_ms=record.key.not_before_ms,
        verify_until_ms=record.key.verify_until_ms,
        created_at_ms=record.created_at_ms,
        since_ms=record.since_ms,
        nodes=nodes,
    )


def _rollout_view(far: Rollout[KeyRecord]) -> admin_pb2.KeyRollout:
    return admin_pb2.KeyRollout(
        key_id=far.record.key_id,
        site=far.record.key.site,
        asked=far.asked,
        holding=far.holding,
        away=far.away,
        lacking=far.lacking,
        complete=far.complete,
    )


def _holders(holders: Mapping[tuple[int, int], int]) -> list[admin_pb2.BundleHolders]:
    return [
        admin_pb2.BundleHolders(version=_version(version), nodes=count)
        for version, count in sorted(holders.items(), reverse=True)
    ]


def _version(version: tuple[int, int]) -> session_pb2.BundleVersion:
    return session_pb2.BundleVersion(generation=version[0], number=version[1])
