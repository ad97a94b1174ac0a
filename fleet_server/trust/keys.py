"""Command keys between the database and memory: made, sealed and marked on the way in, verified and opened on the way
out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

from fleet import envelope
from fleet.envelope import Signer
from fleet.trust import CommandKey
from fleet.v1 import trust_pb2
from fleet_server.trust.phases import SKEW_MS, Change, KeyRecord
from fleet_server.trust.secrets import SealError, Secrets
from fleet_server.trust.store import AuthorityRow, CommandKeyRow


@dataclass(frozen=True, slots=True)
class HeldCommandKey:
    """A verified command key of this server, ready to sign."""

    record: KeyRecord
    signer: Signer
    row: CommandKeyRow

    @property
    def key(self) -> CommandKey:
        """As its certificate describes it."""
        return self.record.key


class KeyVault:
    """Seals authorities and command keys for the database, and opens them.

    Args:
        secrets: the installation's.
    """

    def __init__(self, secrets: Secrets) -> None:
        self._box = secrets.box
        self._mac = secrets.row_mac("command_keys")

    def new_authority(self, cluster_id: str, generation: int, now_ms: int) -> AuthorityRow:
        """A row with a fresh authority."""
        signer = Signer.generate()
        sealed = self._box.seal(signer.private_bytes(), row=_authority_row(cluster_id, generation))
        return AuthorityRow(cluster_id, generation, signer.public_key, sealed, now_ms)

    def open_authority(self, row: AuthorityRow) -> Signer:
        """The authority of a row.

        Raises:
            SealError: sealed under another key, changed, or its public half does not belong to it.
        """
        where = _authority_row(row.cluster_id, row.generation)
        signer = Signer.from_private_bytes(self._box.unseal(row.sealed_private, row=where))
        if signer.public_key != row.public_key:
            raise SealError(f"{where} names a public key that is not its own: restore the row from a backup")
        return signer

    def new_command_key(
        self,
        cluster_id: str,
        *,
        site: str,
        phase: trust_pb2.KeyPhase.ValueType,
        now_ms: int,
        first_bundle: tuple[int, int] = (0, 0),
    ) -> CommandKeyRow:
        """A row with a fresh command key, for all sites when `site` is empty.

        Args:
            first_bundle: version of the first bundle that will certify it.
        """
        signer = Signer.generate()
        row = CommandKeyRow(
            key_id=signer.key_id,
            cluster_id=cluster_id,
            site=site,
            public_key=signer.public_key,
            sealed_private=self._box.seal(signer.private_bytes(), row=_key_row(signer.key_id)),
            phase=phase,
            not_before_ms=now_ms - SKEW_MS,
            verify_until_ms=0,
            created_at_ms=now_ms,
            since_ms=now_ms,
            first_generation=first_bundle[0],
            first_number=first_bundle[1],
            mac=b"",
        )
        return self._marked(row)

    def in_phase(self, row: CommandKeyRow, change: Change, now_ms: int) -> CommandKeyRow:
        """A verified row after a change of phase, under a new MAC."""
        since_ms = row.since_ms if change.phase == row.phase else now_ms
        changed = replace(row, phase=change.phase, verify_until_ms=change.verify_until_ms, since_ms=since_ms)
        return self._marked(changed)

    def _marked(self, row: CommandKeyRow) -> CommandKeyRow:
        return replace(row, mac=self._mac.compute(*row.authority_fields()))

    def open_command_keys(
        self, rows: Iterable[CommandKeyRow]
    ) -> tuple[dict[bytes, HeldCommandKey], list[CommandKeyRow]]:
        """Keys by key id, and the rows that were written or edited around the server: those are used for nothing."""
        held: dict[bytes, HeldCommandKey] = {}
        refused: list[CommandKeyRow] = []
        for row in rows:
            signer = self._open_command_key(row)
            if signer is None:
                refused.append(row)
                continue
            phase = cast("trust_pb2.KeyPhase.ValueType", row.phase)
            key = CommandKey(row.public_key, row.site, row.not_before_ms, row.verify_until_ms, phase)
            first_bundle = (row.first_generation, row.first_number)
            record = KeyRecord(row.key_id, key, row.created_at_ms, row.since_ms, first_bundle)
            held[row.key_id] = HeldCommandKey(record, signer, row)
        return held, refused

    def _open_command_key(self, row: CommandKeyRow) -> Signer | None:
        if not self._mac.verify(row.mac, *row.authority_fields()):
            return None
        signer = Signer.from_private_bytes(self._box.unseal(row.sealed_private, row=_key_row(row.key_id)))
        return signer if signer.public_key == row.public_key and envelope.key_id(row.public_key) == row.key_id else None


def _authority_row(cluster_id: str, generation: int) -> str:
    return f"cluster_authorities/{cluster_id}/{generation}"


def _key_row(key_id: bytes) -> str:
    return f"command_keys/{key_id.hex()}"
