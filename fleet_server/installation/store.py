"""SQL of the installation room. Nothing in these rows counts but what is signed in them, so they carry no MAC."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update

from fleet_server.database.engine import Connection, for_update, sql
from fleet_server.database.installation_schema import installation_authority, platform_role_grants


@dataclass(frozen=True, slots=True)
class AuthorityRow:
    """The imported manifest and the newest claim, as signed; `claim` is empty before there is one."""

    installation_id: str
    manifest: bytes
    activated_at_ms: int
    claim: bytes


@dataclass(frozen=True, slots=True)
class GrantRow:
    """An imported grant, as signed."""

    grant_sha256: bytes
    installation_id: str
    signed: bytes
    imported_at_ms: int


def authority(conn: Connection, installation_id: str, *, lock: bool = False) -> AuthorityRow | None:
    """What was imported for the installation. With `lock`, other replicas wait for this transaction."""
    text = (
        "SELECT installation_id, manifest, activated_at_ms, claim FROM installation_authority WHERE installation_id = ?"
    )
    row = conn.exec_driver_sql(sql(conn, text + (for_update(conn) if lock else "")), (installation_id,)).fetchone()
    return None if row is None else AuthorityRow(row[0], bytes(row[1]), row[2], bytes(row[3]))


def put_authority(conn: Connection, row: AuthorityRow) -> None:
    """Store the manifest; it replaces an older one."""
    conn.execute(delete(installation_authority).where(installation_authority.c.installation_id == row.installation_id))
    conn.execute(
        insert(installation_authority).values(
            installation_id=row.installation_id,
            manifest=row.manifest,
            activated_at_ms=row.activated_at_ms,
            claim=row.claim,
        )
    )


def put_claim(conn: Connection, installation_id: str, claim: bytes) -> None:
    """Store the newest claim."""
    changed = update(installation_authority).where(installation_authority.c.installation_id == installation_id)
    conn.execute(changed.values(claim=claim))


def put_grant(conn: Connection, row: GrantRow) -> bool:
    """Store a grant; False when it is there already."""
    text = (
        "INSERT INTO platform_role_grants (grant_sha256, installation_id, signed, imported_at_ms)"
        " VALUES (?, ?, ?, ?) ON CONFLICT (grant_sha256) DO NOTHING"
    )
    values = (row.grant_sha256, row.installation_id, row.signed, row.imported_at_ms)
    return conn.exec_driver_sql(sql(conn, text), values).rowcount == 1


def grants(conn: Connection, installation_id: str) -> list[bytes]:
    """Every grant of the installation, as signed, oldest first."""
    ordered = platform_role_grants.c.imported_at_ms, platform_role_grants.c.grant_sha256
    wanted = select(platform_role_grants.c.signed).where(platform_role_grants.c.installation_id == installation_id)
    return [bytes(row[0]) for row in conn.execute(wanted.order_by(*ordered))]
