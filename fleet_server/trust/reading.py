"""Keys and newest bundle of a cluster as a transaction finds them, under the cluster's lock, and never worth more than
what was known: somebody who writes the database can put old rows back, their MACs and signatures still good."""

from __future__ import annotations

from collections.abc import Collection

from fleet.errors import Refusal
from fleet.trust import TrustState
from fleet_server.audit.service import AuditService
from fleet_server.audit.spent import Spent
from fleet_server.database.writer import Transaction
from fleet_server.trust import bundles
from fleet_server.trust.bundles import Published
from fleet_server.trust.keyring import Keyring, check_not_older, load_keyring, revoke_what_stepped_back
from fleet_server.trust.parts import TrustParts
from fleet_server.trust.tls_ring import with_tls


def read_trust(
    tx: Transaction,
    parts: TrustParts,
    cluster_id: str,
    *,
    known: Keyring | None,
    told: Collection[str],
    earlier: Keyring | None = None,
) -> tuple[Keyring, Published | None]:
    """Lock the cluster, and read.

    Args:
        known: what this replica holds in memory.
        told: ids of keys whose refusal was audited before.
        earlier: what this transaction read before: it has audited what it refused.

    Raises:
        SealError, TrustSetupError: rows of authority or bundles do not verify.
    """
    now_ms = parts.clock.now_ms()
    refused = earlier.refused if earlier is not None else ()
    keyring = load_keyring(tx, parts.vault, parts.audit, cluster_id=cluster_id, now_ms=now_ms, told={*told, *refused})
    newest = bundles.newest(tx.conn, cluster_id, keyring.authority)
    check_not_older(keyring, known)
    before = [] if newest is None else [newest.state.command_keys]
    if known is not None:  # it names keys that bundles do not
        before.append({key_id: held.key for key_id, held in known.command_keys.items()})
    spent = _spent(tx, parts.audit)
    keyring = revoke_what_stepped_back(tx, parts.vault, parts.audit, keyring, before, now_ms, spent=spent)
    published = newest and newest.state
    return with_tls(tx, parts, cluster_id, keyring, published, earlier or known, spent=spent), newest


def number_to_pass(known: TrustState | None, keyring: Keyring, newest: Published | None, above: int) -> int:
    """The number that the next bundle has to pass: `above`, or that of a bundle which this replica knows and somebody
    took out of the database. No node that holds it takes another one of the same number."""
    if known is None or known.generation != keyring.generation:
        return above
    return max(above, known.number) if newest is None or newest.state.number < known.number else above


def _spent(tx: Transaction, audit: AuditService) -> Spent | None:
    """What was revoked. While that cannot be told, which keeps operators out, nodes are served by what bundles and
    memory say."""
    try:
        return audit.spent.known(tx.conn)
    except Refusal:
        return None
