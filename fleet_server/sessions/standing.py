"""How a caller stands: whose api_key it shows, what state that node is in, and what its session is still good for."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet_server.database.engine import Connection, Database
from fleet_server.database.together import Together
from fleet_server.nodes.record import NodeRecord
from fleet_server.nodes.rules import refuse_inactive, replaced_by_another
from fleet_server.nodes.service import NodeService
from fleet_server.sessions import proofs, store
from fleet_server.sessions.rotations import ApiKeyRow, Rotation
from fleet_server.sessions.store import ApiKeyStore, RotationStore, SessionRow

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Standing:
    """What one read found.

    Args:
        found: the api_key's node, or why nothing can be said of it now.
    """

    key: ApiKeyRow | None
    found: NodeRecord | Refusal | None
    session: SessionRow | None
    rotation: Rotation | None

    @property
    def node(self) -> NodeRecord | None:
        """The api_key's node."""
        return None if isinstance(self.found, Refusal) else self.found


class _Asked(NamedTuple):
    key_sha256: bytes
    token_sha256: bytes | None


class Standings:
    """Reads and judges. Belongs to the event loop, `still_stand` to a transaction."""

    def __init__(
        self, database: Database, api_keys: ApiKeyStore, rotations: RotationStore, nodes: NodeService, clock: Clock
    ) -> None:
        self._api_keys = api_keys
        self._rotations = rotations
        self._clock = clock
        self._nodes = nodes
        self._together = Together(database.read, self._read)
        self._told: set[bytes] = set()
        self.tampered: deque[ApiKeyRow] = deque(maxlen=10_000)
        """Rows that were found changed, for the audit."""

    async def find(self, key_sha256: bytes, token_sha256: bytes | None = None) -> Standing:
        """What stands in the database, now or at a moment after this call.

        Args:
            token_sha256: of a session's token; None asks for neither a session nor a rotation.

        Raises:
            Refusal: the database is away.
        """
        return await self._together.ask(_Asked(key_sha256, token_sha256))

    def _read(self, conn: Connection, asked: Sequence[_Asked]) -> Sequence[Standing]:
        keys = self._api_keys.by_digests(conn, list({each.key_sha256 for each in asked}))
        intact = [key for key in keys.values() if key.intact]
        nodes = self._nodes.load_to_admit(conn, list({key.node_id for key in intact}))
        tokens = [each.token_sha256 for each in asked if each.token_sha256 is not None]
        sessions = store.sessions(conn, tokens) if tokens else {}
        rotations = self._rotations.of_nodes(conn, list(nodes)) if tokens else {}

        def standing(each: _Asked) -> Standing:
            key = keys.get(each.key_sha256)
            node = None if key is None or not key.intact else nodes.get(key.node_id)
            if each.token_sha256 is None or node is None or isinstance(node, Refusal):
                return Standing(key, node, None, None)
            rotation = rotations.get(node.node_id, Rotation(node.node_id))
            return Standing(key, node, sessions.get(each.token_sha256), rotation)

        return [standing(each) for each in asked]

    def node_of(self, standing: Standing, node_id: str) -> NodeRecord:
        """The node that the api_key belongs to, whatever its state.

        Args:
            node_id: the node that the caller says it is.

        Raises:
            Refusal: QUARANTINED, UNKNOWN_CREDENTIAL or REVOKED.
        """
        key, node = standing.key, standing.found
        if isinstance(node, Refusal):
            raise node
        if key is not None and not key.intact:
            self._note(key)
            raise Refusal(
                Reason.QUARANTINED,
                "the record of this api_key was changed outside the server and opens nothing:"
                " an operator has to revoke the node and enroll it anew",
            )
        if key is None or node is None:
            raise proofs.unknown_credential()
        if node.node_id != node_id:
            raise Refusal(
                Reason.UNKNOWN_CREDENTIAL,
                "this api_key belongs to another node: restore the membership file of this one",
            )
        if key.ended(self._clock.now_ms()):
            if key.created_at_ms < node.enrolled_at_ms:
                raise Refusal(Reason.REVOKED, replaced_by_another(node), metadata={"node": node.name})
            raise refuse_inactive(node) or Refusal(
                Reason.REVOKED, "this api_key has ended: the node holds a newer one, or enrolls with a new join token"
            )
        return node

    def still_stand(self, conn: Connection, digests: Sequence[bytes]) -> frozenset[bytes]:
        """Those of these api_keys that stand, by digest: an operator's decision may overtake a claim between its checks
        and its write."""
        keys, now_ms = self._api_keys.by_digests(conn, digests), self._clock.now_ms()
        return frozenset(digest for digest, key in keys.items() if key.intact and not key.ended(now_ms))

    def _note(self, key: ApiKeyRow) -> None:
        if key.key_sha256 not in self._told:
            self._told.add(key.key_sha256)
            self.tampered.append(key)
            log.error("api_key_row_tampered", key_sha256=key.key_sha256.hex())


def refuse_unless_active(node: NodeRecord) -> None:
    """Refuse with the state of the node unless it may connect.

    Raises:
        Refusal: SUSPENDED, REVOKED or QUARANTINED.
    """
    refusal = refuse_inactive(node)
    if refusal is not None:
        raise refusal


def open_session(row: SessionRow | None, node: NodeRecord, now_ms: int) -> SessionRow:
    """The session, while it can still open a stream of this node.

    Raises:
        Refusal: SESSION_EXPIRED, BAD_PROOF or TOKEN_USED.
    """
    if row is None:
        raise proofs.session_expired()
    if row.node_id != node.node_id:
        raise proofs.bad_proof("the session belongs to another node")
    if row.claimed_epoch:
        raise Refusal(Reason.TOKEN_USED, "this session token has opened its stream: shake hands for a new one")
    if now_ms >= row.expires_at_ms:
        raise proofs.session_expired()
    return row
