"""What the node shows of itself: its api_key and its keys, and those that are to replace them.

Mental model
    The old credential and the new one stand side by side, both durable, until the server was met with the new one:
    only then is the old one forgotten. So a node killed at any moment holds one that works, whatever the server heard.
    Which of the two the server knows is found out by asking: a handshake that is refused for a credential is tried
    with the other one at once. A stream that was opened with the old keys carries the statement that asks for the new
    ones, again each time, until the server answers (docs/protocol.md, "Rotation of node credentials").
    The two key files are replaced one after the other. In between only the pending pair is whole: it is shown first,
    and no answer of the server makes the node forget it.
"""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass, replace

from fleet import sealing
from fleet.clock import ServerTime
from fleet.errors import Reason
from fleet.identity import NodeKeys, show_fingerprint, store_node_keys
from fleet.logs import get_logger
from fleet.node_audit import NodeAuditKind
from fleet.node_keys import sign_rotation
from fleet.secrets import Secret
from fleet.v1 import gateway_pb2, trust_pb2
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import Membership, save_membership
from fleet_node.enrollment.rotation_file import PendingKeys, PendingRotation, load_rotation, save_rotation
from fleet_node.link.key_audit import Unheard
from fleet_node.link.ports import KeyAuditPort

log = get_logger(__name__)

API_KEY = gateway_pb2.ROTATION_SUBJECT_API_KEY
NODE_KEYS = gateway_pb2.ROTATION_SUBJECT_NODE_KEYS


class RotationPinnedError(Exception):
    """The node's configuration pins its fingerprint: new keys would keep it from starting."""


@dataclass(frozen=True, slots=True, repr=False)
class Shown:
    """What one handshake and its stream show."""

    membership: Membership
    keys: NodeKeys
    refused_api_key: Secret[str] | None = None
    """The new api_key, when it was shown before and the server does not know it."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of a frame: what to answer, and whether a new stream has to take over, to use what is new."""

    answer: gateway_pb2.NodeControl | None = None
    renew: bool = False


class Credentials:
    """See the module's mental model. Belongs to the event loop.

    Args:
        folder: the state folder.
        membership: as it stands on disk.
        keys: as they stand on disk.
        server_time: dates rotations, since the node's own clock may be wrong.
        pinned: the configuration pins the fingerprint, so the keys stay.
        audit: told what is stored, what is in force, and what is refused.

    Raises:
        MembershipError: what is pending cannot be read.
    """

    def __init__(
        self,
        folder: StateFolder,
        membership: Membership,
        keys: NodeKeys,
        *,
        server_time: ServerTime,
        pinned: bool = False,
        audit: KeyAuditPort | None = None,
    ) -> None:
        self._folder = folder
        self._membership = membership
        self._keys = keys
        self._server_time = server_time
        self._pinned = pinned
        self._audit = audit or Unheard()
        self._pending = load_rotation(folder.rotation)
        self._half_written = self._pending.keys is not None and _are_half_written(keys, self._pending.keys)
        self._taken = self._half_written  # they are written once the server was met with them
        self._turn = asyncio.Lock()

    @property
    def keys(self) -> NodeKeys:
        """In force, until the server was met with those that replace them. Any thread may ask."""
        return self._keys

    @property
    def fingerprint(self) -> str:
        """Of the keys in force, as people read it."""
        return show_fingerprint(self._keys.fingerprint)

    @property
    def rotating(self) -> list[str]:
        """What is being replaced: `api_key`, `keys`."""
        pending = {"api_key": self._pending.api_key, "keys": self._pending.keys}
        return [name for name, held in pending.items() if held is not None]

    # -- which to show ------------------------------------------------------------------------------------------------
    def first(self) -> Shown:
        """What to show first: the new api_key, which the server made itself; the new keys once it said that it took
        them."""
        api_key = self._pending.api_key or self._membership.api_key
        return Shown(replace(self._membership, api_key=api_key), self.preferred_keys)

    def after_refusal(self, shown: Shown, reason: Reason) -> Shown | None:
        """What to show at once instead, when `shown` was refused for a credential of which there are two; None when
        there is nothing else."""
        if reason in (Reason.UNKNOWN_CREDENTIAL, Reason.REVOKED):
            if self._pending.api_key is not None and shown.membership.api_key is self._pending.api_key:
                return Shown(self._membership, shown.keys, self._pending.api_key)
        elif reason is Reason.BAD_PROOF and self._pending.keys is not None:
            preferred = self.preferred_keys
            if shown.keys is preferred:
                other = self._keys if preferred is self._pending.keys.keys else self._pending.keys.keys
                return replace(shown, keys=other)
        return None

    @property
    def preferred_keys(self) -> NodeKeys:
        """Keys to sign with: the new ones from the moment that the server is known to have taken them."""
        return self._pending.keys.keys if self._pending.keys is not None and self._taken else self._keys

    # -- what the server says -----------------------------------------------------------------------------------------
    async def welcomed(self, shown: Shown) -> list[gateway_pb2.NodeControl]:
        """A stream was opened with these: what they replace is forgotten. Returns what to say on it first."""
        async with self._turn:
            try:
                await self._settle(shown)
            except OSError as error:
                log.error("credentials_not_settled", error=str(error))  # both stand; the next welcome tries again
            pending = self._pending.keys
            return [] if pending is None else [gateway_pb2.NodeControl(node_key_rotation=pending.statement)]

    async def take(self, control: gateway_pb2.ServerControl) -> Taken:
        """Follow an `api_key`, `rotate_keys` or `node_keys` frame. What it brings is durable before it is answered."""
        async with self._turn:
            kind = control.WhichOneof("body")
            if kind == "api_key":
                return await self._take_api_key(control.api_key)
            if kind == "rotate_keys":
                return await self._take_order(control.rotate_keys)
            return await self._take_answer(control.node_keys)

    async def begin(self, *, identity: bool, sealing_key: bool) -> gateway_pb2.NodeControl:
        """Make new keys, durably, and the statement that asks the server to take them; the one under way, if one is.

        Raises:
            RotationPinnedError: the configuration pins the fingerprint.
            OSError: they cannot be written; the old ones stand.
        """
        async with self._turn:
            return await self._begin(identity=identity, sealing_key=sealing_key)

    async def _take_api_key(self, offered: gateway_pb2.ApiKeyRotation) -> Taken:
        opened = self._open(offered.sealed_api_key)
        if opened is None:
            log.warning("api_key_refused", reason="CANNOT_OPEN")
            self._refuse("api_key", "CANNOT_OPEN")
            return Taken(_answer(API_KEY, "CANNOT_OPEN"))
        held = self._pending.api_key or self._membership.api_key
        if hmac.compare_digest(held.reveal(), opened.reveal()):
            return Taken(_answer(API_KEY), renew=self._pending.api_key is not None)
        try:
            await self._save(replace(self._pending, api_key=opened))
        except OSError as error:
            log.error("api_key_not_stored", error=str(error))
            self._refuse("api_key", "DISK")
            return Taken(_answer(API_KEY, "DISK"))
        log.info("api_key_stored", old_until_ms=offered.old_until_ms)
        self._audit.tell(NodeAuditKind.CREDENTIAL_STORED, subject="api_key", old_until_ms=offered.old_until_ms)
        return Taken(_answer(API_KEY), renew=True)

    async def _take_order(self, order: gateway_pb2.RotateNodeKeys) -> Taken:
        try:
            return Taken(await self._begin(identity=order.identity, sealing_key=order.sealing))
        except RotationPinnedError as error:
            log.warning("key_rotation_refused", reason="PINNED", detail=str(error))
            self._refuse("node_keys", "PINNED")
            return Taken(_answer(NODE_KEYS, "PINNED"))
        except OSError as error:
            log.error("new_keys_not_stored", error=str(error))
            self._refuse("node_keys", "DISK")
            return Taken(_answer(NODE_KEYS, "DISK"))

    async def _take_answer(self, answer: gateway_pb2.NodeKeysTaken) -> Taken:
        pending = self._pending.keys
        if pending is None:
            return Taken()
        if answer.taken and answer.fingerprint == pending.keys.fingerprint:
            self._taken = True
            log.info("new_keys_taken", fingerprint=show_fingerprint(answer.fingerprint))
            return Taken(renew=True)
        if not answer.taken:
            log.error("new_keys_refused", reason=answer.reason, retry_after_s=answer.retry_after_ms // 1000)
            self._refuse("node_keys", answer.reason)
            if self._half_written:
                log.error("new_keys_kept", why="one of the two old keys is replaced already: nothing else is whole")
                return Taken()
            try:
                await self._save(replace(self._pending, keys=None))
            except OSError as error:
                log.error("credentials_not_settled", error=str(error))
        return Taken()

    # -- on disk ------------------------------------------------------------------------------------------------------
    async def _begin(self, *, identity: bool, sealing_key: bool) -> gateway_pb2.NodeControl:
        if self._pinned:
            raise RotationPinnedError("the setting `fingerprint` pins this node's keys: remove it to rotate them")
        if self._pending.keys is None:
            fresh = NodeKeys.generate()
            new = NodeKeys(
                fresh.identity if identity else self._keys.identity,
                fresh.sealing if sealing_key else self._keys.sealing,
            )
            statement = sign_rotation(
                cluster_id=self._membership.cluster_id,
                node_id=self._membership.node_id,
                old=self._keys,
                new=new,
                issued_at_ms=self._server_time.now_ms() or 0,
            )
            await self._save(replace(self._pending, keys=PendingKeys(new, statement)))
            fingerprint = show_fingerprint(new.fingerprint)
            log.info("new_keys_made", fingerprint=fingerprint)
            self._audit.tell(
                NodeAuditKind.CREDENTIAL_STORED,
                subject="node_keys",
                fingerprint=fingerprint,
                statement=statement.SerializeToString().hex(),
            )
        pending = self._pending.keys
        assert pending is not None  # noqa: S101 - made above
        return gateway_pb2.NodeControl(node_key_rotation=pending.statement)

    async def _settle(self, shown: Shown) -> None:
        pending = self._pending
        if pending.api_key is not None:
            if shown.membership.api_key is pending.api_key:
                await asyncio.to_thread(save_membership, self._folder.membership, shown.membership)
                self._membership = shown.membership
                pending = replace(pending, api_key=None)
                self._audit.tell(NodeAuditKind.CREDENTIAL_IN_FORCE, subject="api_key")
            elif shown.refused_api_key is pending.api_key:
                pending = replace(pending, api_key=None)
                self._refuse("api_key", "TAKEN_BACK")  # by the server
        if pending.keys is not None and shown.keys is pending.keys.keys:
            self._taken = self._half_written = True  # even if the disk does not let it be settled now
            await asyncio.to_thread(store_node_keys, self._folder.path, shown.keys)
            self._keys, self._taken, self._half_written = shown.keys, False, False
            pending = replace(pending, keys=None)
            log.info("keys_replaced", fingerprint=self.fingerprint)
            self._audit.tell(NodeAuditKind.CREDENTIAL_IN_FORCE, subject="node_keys", fingerprint=self.fingerprint)
        if pending != self._pending:
            await self._save(pending)

    async def _save(self, pending: PendingRotation) -> None:
        await asyncio.to_thread(save_rotation, self._folder.rotation, pending)
        self._pending = pending

    def _refuse(self, subject: str, reason: str) -> None:
        self._audit.refuse(NodeAuditKind.CREDENTIAL_REFUSED, reason, subject=subject)

    def _open(self, sealed: bytes) -> Secret[str] | None:
        """The api_key, sealed to the keys in force or to those that replace them; None when it opens with neither."""
        membership = self._membership
        for keys in (self._keys, *(() if self._pending.keys is None else (self._pending.keys.keys,))):
            info = sealing.sealing_info(
                sealing.Purpose.API_KEY, membership.cluster_id, membership.node_id, keys.fingerprint
            )
            try:
                return Secret(sealing.unseal(sealed, keys.sealing, info).decode("ascii"))
            except (sealing.SealingError, UnicodeDecodeError):
                continue
        return None


def _are_half_written(keys: NodeKeys, pending: PendingKeys) -> bool:
    """Whether a process ended after it had replaced one key file, and before the other."""
    said = trust_pb2.NodeKeyRotationStatement.FromString(pending.statement.statement)
    same_identity = keys.identity.public_key == pending.keys.identity.public_key
    same_sealing = keys.sealing_public == pending.keys.sealing_public
    return bool(said.identity_key and said.sealing_key) and same_identity != same_sealing


def _answer(subject: gateway_pb2.RotationSubject.ValueType, refused: str = "") -> gateway_pb2.NodeControl:
    answer = gateway_pb2.RotationAnswer(subject=subject, applied=not refused, reason=refused)
    return gateway_pb2.NodeControl(rotation_answer=answer)
