"""What was imported and stands in the database, as far as it verifies: a row that does not is no row.

What a newer manifest replaced is genuine as well: whoever writes the database and has the key of an owner who was
replaced would put it back. So that it was replaced is written down a second time (`audit.spent`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.v1 import trust_pb2
from fleet_server.audit.spent import SpentRecord, What
from fleet_server.database.engine import Connection
from fleet_server.installation import rules, store
from fleet_server.installation.rules import Claim, Grant, Manifest

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Authority:
    """What was imported, verified."""

    manifest: Manifest
    claim: Claim | None
    activated_at_ms: int
    signed_claim: bytes = b""
    manifest_sha256: str = ""


class Imported:
    """Reads and judges. Calls may come from any thread.

    Args:
        root_key: the pinned product root, raw; empty for none: then nothing counts.
        spent: which manifests were replaced.
    """

    def __init__(self, root_key: bytes, spent: SpentRecord) -> None:
        self._root_key = root_key
        self._spent = spent

    def authority(self, conn: Connection, installation_id: str, *, lock: bool = False) -> Authority | None:
        """The manifest in force and the claim of its owner."""
        row = store.authority(conn, installation_id, lock=lock)
        if row is None or not self._root_key:
            return None
        try:
            signed = trust_pb2.Signed.FromString(row.manifest)
            manifest = rules.verify_manifest(signed, root_key=self._root_key, installation_id=installation_id)
        except (Refusal, DecodeError) as error:
            log.error("activation_refused", error=str(error))
            return None
        if self._was_replaced(conn, signed):
            log.error("activation_put_back", issued_at_ms=manifest.issued_at_ms)
            return None
        claim = _claim(row.claim, manifest, installation_id)
        raw_claim = row.claim if claim is not None else b""
        return Authority(manifest, claim, row.activated_at_ms, raw_claim, _sha256(signed))

    def check_not_replaced(self, conn: Connection, signed: trust_pb2.Signed) -> None:
        """Whether a manifest may be imported, as far as the record says; also where the row of the newer one is gone.

        Raises:
            Refusal: CONFLICT.
        """
        if self._was_replaced(conn, signed):
            raise Refusal(
                Reason.CONFLICT, "a newer activation manifest took this one's place: have one signed again, now"
            )

    def note_replaced(self, conn: Connection, held: Authority) -> None:
        """Record in the running transaction that another manifest takes the place of `held`.

        Raises:
            Refusal: UNAVAILABLE: the record was changed around the server, and this process has never seen it whole.
        """
        self._spent.add(conn, What.MANIFEST, held.manifest_sha256)

    def grants(self, conn: Connection, installation_id: str, now_ms: int) -> list[Grant]:
        """Platform role grants in force."""
        found = []
        for raw in store.grants(conn, installation_id) if self._root_key else ():
            try:
                signed = trust_pb2.Signed.FromString(raw)
                grant = rules.verify_grant(signed, root_key=self._root_key, installation_id=installation_id)
            except (Refusal, DecodeError) as error:
                log.error("platform_grant_refused", error=str(error))
                continue
            if grant.in_force(now_ms):
                found.append(grant)
        return found

    def _was_replaced(self, conn: Connection, signed: trust_pb2.Signed) -> bool:
        try:
            return self._spent.known(conn).times(What.MANIFEST, _sha256(signed)) > 0
        except Refusal:
            return False  # a fleet does not stop for a byte of its audit; nobody is given a token then


def _claim(raw: bytes, manifest: Manifest, installation_id: str) -> Claim | None:
    if not raw:
        return None
    try:
        return rules.verify_claim(trust_pb2.Signed.FromString(raw), manifest=manifest, installation_id=installation_id)
    except (Refusal, DecodeError) as error:
        log.error("owner_claim_refused", error=str(error))
        return None


def _sha256(signed: trust_pb2.Signed) -> str:
    return hashlib.sha256(signed.statement).hexdigest()
