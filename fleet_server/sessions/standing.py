"""How a caller stands: whose api_key it shows, what state that node is in, and what its session is still good for."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet_server.database.engine import Connection
from fleet_server.nodes.record import NodeRecord
from fleet_server.nodes.rules import refuse_inactive, replaced_by_another
from fleet_server.nodes.service import NodeService
from fleet_server.sessions import proofs, store
from fleet_server.sessions.rotations import ApiKeyRow, Rotation
from fleet_server.sessions.store import ApiKeyStore, RotationStore, SessionRow

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Standing:
    """What one read found."""

    key: ApiKeyRow | None
    node: NodeRecord | None
    session: SessionRow | None
    rotation: Rotation | None


class Standings:
    """Reads and judges. Calls may come from any thread."""

    def __init__(self, api_keys: ApiKeyStore, rotations: RotationStore, nodes: NodeService, clock: Clock) -> None:
        self._api_keys = api_keys
        self._rotations = rotations
        self._clock = clock
        self._nodes = nodes
        self._told: set[bytes] = set()
        self.tampered: deque[ApiKeyRow] = deque(maxlen=10_000)
        """Rows that were found changed, for the audit."""

    def read(self, conn: Connection, key_sha256: bytes, token_sha256: bytes | None = None) -> Standing:
        """What stands in the database."""
        key = self._api_keys.by_digest(conn, key_sha256)
        node = self._nodes.load_to_admit(conn, key.node_id) if key is not None and key.intact else None
        if token_sha256 is None:
            return Standing(key, node, None, None)
        rotation = None if node is None else self._rotations.of_node(conn, node.node_id)
        return Standing(key, node, store.session(conn, token_sha256), rotation)

    def node_of(self, standing: Standing, node_id: str) -> NodeRecord:
        """The node that the api_key belongs to, whatever its state.

        Args:
            node_id: the node that the caller says it is.

        Raises:
            Refusal: QUARANTINED, UNKNOWN_CREDENTIAL or REVOKED.
        """
        key, node = standing.key, standing.node
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

    def check_unchanged(self, conn: Connection, key_sha256: bytes, node: NodeRecord) -> None:
        """Refuse when an operator's decision overtook a claim between its checks and its write.

        Raises:
            Refusal: UNAVAILABLE; the next attempt is told the decision.
        """
        key = self._api_keys.by_digest(conn, key_sha256)
        ended = key is not None and key.ended(self._clock.now_ms())
        if key is None or not key.intact or ended or not self._nodes.as_read(conn, node):
            raise Refusal(Reason.UNAVAILABLE, "the node's record was changed at this moment: connect again")

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
