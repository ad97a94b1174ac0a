"""The keys of a cluster as one replica holds them: loaded under its lock, and made once when the cluster has none."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from google.protobuf.message import DecodeError

from fleet import trust
from fleet.envelope import Signer
from fleet.trust import CommandKey, TrustError
from fleet.v1 import trust_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.audit.service import AuditService
from fleet_server.audit.spent import Spent, What
from fleet_server.database.writer import Transaction
from fleet_server.trust import store
from fleet_server.trust.keys import HeldCommandKey, KeyVault
from fleet_server.trust.phases import Change, KeyRecord, steps_back
from fleet_server.trust.store import BundleRow, CommandKeyRow
from fleet_server.trust.tls_keys import TlsRing


class TrustSetupError(Exception):
    """The cluster's keys cannot be used. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Keyring:
    """Opened keys.

    `steps` holds the first bundle of each generation; `refused` the ids of command keys whose rows were changed
    around the server; `tls` what the listeners show, and the CAs that nodes are told to trust.
    """

    authority: Signer
    generation: int
    command_keys: Mapping[bytes, HeldCommandKey]
    steps: tuple[tuple[int, trust_pb2.Signed], ...]
    refused: tuple[str, ...]
    tls: TlsRing = field(default_factory=TlsRing)

    @property
    def records(self) -> list[KeyRecord]:
        """Every command key."""
        return [held.record for held in self.command_keys.values()]


def load_keyring(
    tx: Transaction,
    vault: KeyVault,
    audit: AuditService,
    *,
    cluster_id: str,
    now_ms: int,
    told: Collection[str] = (),
) -> Keyring:
    """Load the keys of a cluster; make authority and first command key when it has none. Whoever else changes keys or
    bundles of the cluster waits for this transaction.

    Args:
        told: ids of keys whose refusal was audited before.

    Raises:
        SealError: sealed under another secret encryption key, or changed.
        TrustSetupError: a new authority cannot be stored, or a bundle cannot be read.
    """
    audit.spent.require()  # the cluster is there, and with it the record of what was spent
    if store.authority(tx.conn, cluster_id) is None:
        _create_keys(tx, vault, audit, cluster_id, now_ms)
    row = store.authority(tx.conn, cluster_id, lock=True)
    if row is None:
        raise TrustSetupError("the cluster's authority cannot be stored: check what the database lets this server do")
    authority = vault.open_authority(row)
    held, refused = vault.open_command_keys(store.keys(tx.conn, cluster_id))
    _tell_refused(tx, audit, refused, told)
    steps = store.generation_steps(tx.conn, cluster_id)
    return Keyring(
        authority=authority,
        generation=row.generation,
        command_keys=held,
        steps=tuple((step.generation, signed_bundle(step)) for step in steps),
        refused=tuple(bad.key_id.hex() for bad in refused),
    )


def signed_bundle(row: BundleRow) -> trust_pb2.Signed:
    """The bundle in a row; its signatures are not looked at.

    Raises:
        TrustSetupError: it is none.
    """
    try:
        signed = trust_pb2.Signed.FromString(row.signed)
        trust.claimed(signed)
    except (DecodeError, TrustError) as error:
        raise TrustSetupError(
            f"bundle {row.generation}.{row.number} in the database cannot be read:"
            " restore the table trust_bundles from a backup"
        ) from error
    return signed


def check_not_older(keyring: Keyring, before: Keyring | None) -> None:
    """Refuse rows of a generation before the one that is in use.

    Raises:
        TrustSetupError: the newest authority was taken away around the server.
    """
    if before is not None and keyring.generation < before.generation:
        raise TrustSetupError(
            f"the authority of generation {before.generation} is gone from the table cluster_authorities, and nodes"
            " trust no other: restore the table from a backup; stop every replica before you restore a database"
        )


def revoke_what_stepped_back(
    tx: Transaction,
    vault: KeyVault,
    audit: AuditService,
    keyring: Keyring,
    before: Sequence[Mapping[bytes, CommandKey]],
    now_ms: int,
    *,
    spent: Spent | None,
) -> Keyring:
    """The keyring, with every key revoked that is worth more than it was: an old row was put back around the server,
    its MAC still good. Revoked and not only passed over, so that no replica forgets it.

    Args:
        before: keys as bundles and replicas know them. A replica may lag behind the bundle, and the bundle of a
            database that was written to behind a replica: what either says is over is over.
        spent: what was revoked; None while nobody can tell.
    """
    held = dict(keyring.command_keys)
    for key_id, now in keyring.command_keys.items():
        back = any(key_id in known and steps_back(now.key, known[key_id]) for known in before)
        revoked = spent is not None and bool(spent.times(What.COMMAND_KEY, key_id.hex()))
        if back or (revoked and now.key.phase != trust_pb2.KEY_PHASE_REVOKED):
            row = vault.in_phase(now.row, Change(now.record, trust_pb2.KEY_PHASE_REVOKED), now_ms)
            store.save_key(tx.conn, row)
            held |= vault.open_command_keys([row])[0]
            detail = {"site": now.key.site, "revoked": "its row was put back to an earlier state"}
            audit.append(tx, AuditKind.KEY_QUARANTINED, actor="server", subject=key_id.hex(), detail=detail)
    return replace(keyring, command_keys=held)


def _tell_refused(
    tx: Transaction, audit: AuditService, refused: Iterable[CommandKeyRow], told: Collection[str]
) -> None:
    for bad in refused:
        if bad.key_id.hex() not in told:
            detail = {"site": bad.site}
            audit.append(tx, AuditKind.KEY_QUARANTINED, actor="server", subject=bad.key_id.hex(), detail=detail)


def _create_keys(tx: Transaction, vault: KeyVault, audit: AuditService, cluster_id: str, now_ms: int) -> None:
    """Authority and first command key in one transaction: the unique authority row decides whose stand."""
    authority = vault.new_authority(cluster_id, 1, now_ms)
    if not store.insert_authority_once(tx.conn, authority):
        return
    key = vault.new_command_key(cluster_id, site="", phase=trust_pb2.KEY_PHASE_ACTIVE, now_ms=now_ms)
    store.insert_key(tx.conn, key)
    made: dict[str, JSON] = {"generation": 1, "public_key": authority.public_key.hex()}
    audit.append(tx, AuditKind.AUTHORITY_CREATED, actor="server", subject=cluster_id, detail=made)
    active = {"phase": "ACTIVE", "site": ""}
    audit.append(tx, AuditKind.KEY_CREATED, actor="server", subject=key.key_id.hex(), detail=active)
