"""SQL of the trust room: clusters, authorities, command keys, bundles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from fleet_server.database.engine import for_update, sql
from fleet_server.database.schema import cluster_authorities, clusters, command_keys, trust_bundles

_CHUNK = 500


@dataclass(frozen=True, slots=True)
class ClusterRow:
    """A cluster; `mac` covers every other field: signed manifests and grants count for the installation it names."""

    cluster_id: str
    installation_id: str
    name: str
    created_at_ms: int
    mac: bytes = b""

    def authority_fields(self) -> tuple[bytes | str | int, ...]:
        """What the MAC covers, in order."""
        return (self.cluster_id, self.installation_id, self.name, self.created_at_ms)


@dataclass(frozen=True, slots=True, repr=False)
class AuthorityRow:
    """An authority; its private key is sealed."""

    cluster_id: str
    generation: int
    public_key: bytes
    sealed_private: bytes
    created_at_ms: int


@dataclass(frozen=True, slots=True, repr=False)
class CommandKeyRow:
    """A command key; its private key is sealed, and `mac` covers every other field.

    `since_ms` is when it came into its phase; `first_generation` and `first_number` are the version of the first bundle
    that certifies it.
    """

    key_id: bytes
    cluster_id: str
    site: str
    public_key: bytes
    sealed_private: bytes
    phase: int
    not_before_ms: int
    verify_until_ms: int
    created_at_ms: int
    since_ms: int
    first_generation: int
    first_number: int
    mac: bytes

    def authority_fields(self) -> tuple[bytes | str | int, ...]:
        """What the MAC covers, in order."""
        return (
            self.key_id,
            self.cluster_id,
            self.site,
            self.public_key,
            self.sealed_private,
            self.phase,
            self.not_before_ms,
            self.verify_until_ms,
            self.created_at_ms,
            self.since_ms,
            self.first_generation,
            self.first_number,
        )


@dataclass(frozen=True, slots=True)
class BundleRow:
    """A published bundle; `signed` is the serialised `Signed`."""

    cluster_id: str
    generation: int
    number: int
    signed: bytes
    content_sha256: bytes
    expires_at_ms: int


def cluster(conn: Connection, name: str) -> ClusterRow | None:
    """The cluster of that name."""
    row = conn.execute(select(clusters).where(clusters.c.name == name)).fetchone()
    return None if row is None else ClusterRow(*row)


def cluster_names(conn: Connection) -> list[str]:
    """Names of all clusters."""
    return [row[0] for row in conn.execute(select(clusters.c.name).order_by(clusters.c.name))]


def insert_cluster(conn: Connection, row: ClusterRow) -> None:
    """Store a cluster. A name that exists already fails."""
    conn.execute(
        insert(clusters).values(
            cluster_id=row.cluster_id,
            installation_id=row.installation_id,
            name=row.name,
            created_at_ms=row.created_at_ms,
            mac=row.mac,
        )
    )


def insert_authority_once(conn: Connection, row: AuthorityRow) -> bool:
    """Store an authority unless one of its generation is there; whether it was stored. Waits for a competing
    transaction."""
    text = sql(
        conn,
        "INSERT INTO cluster_authorities (cluster_id, generation, public_key, sealed_private, created_at_ms)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT (cluster_id, generation) DO NOTHING",
    )
    values = (row.cluster_id, row.generation, row.public_key, row.sealed_private, row.created_at_ms)
    return conn.exec_driver_sql(text, values).rowcount == 1


def authority(conn: Connection, cluster_id: str, *, lock: bool = False) -> AuthorityRow | None:
    """The newest authority. With `lock`, whoever else changes keys or bundles of the cluster waits for this
    transaction."""
    if lock:  # one row for all generations: who waited for the newest one would not see the one that came after it
        first = "SELECT generation FROM cluster_authorities WHERE cluster_id = ? AND generation = 1"
        conn.exec_driver_sql(sql(conn, first + for_update(conn)), (cluster_id,)).fetchall()
    text = (
        "SELECT cluster_id, generation, public_key, sealed_private, created_at_ms FROM cluster_authorities"
        " WHERE cluster_id = ? ORDER BY generation DESC LIMIT 1"
    )
    row = conn.exec_driver_sql(sql(conn, text), (cluster_id,)).fetchone()
    return None if row is None else AuthorityRow(row[0], row[1], bytes(row[2]), bytes(row[3]), row[4])


def authority_generations(conn: Connection, cluster_id: str) -> list[tuple[int, bytes, int]]:
    """(generation, public key, made at) of every authority, oldest first."""
    column = cluster_authorities.c
    shown = select(column.generation, column.public_key, column.created_at_ms)
    found = conn.execute(shown.where(column.cluster_id == cluster_id).order_by(column.generation))
    return [(row[0], bytes(row[1]), row[2]) for row in found]


def forget_private(conn: Connection, cluster_id: str, generation: int) -> None:
    """Keep no private key of an authority that another one follows."""
    column = cluster_authorities.c
    where = (column.cluster_id == cluster_id) & (column.generation == generation)
    conn.execute(update(cluster_authorities).where(where).values(sealed_private=b""))


def keys(conn: Connection, cluster_id: str) -> list[CommandKeyRow]:
    """All command keys of a cluster, oldest first, as they stand: MACs are not checked here."""
    key = command_keys.c
    ordered = key.created_at_ms, key.first_generation, key.first_number, key.key_id
    found = conn.execute(select(command_keys).where(command_keys.c.cluster_id == cluster_id).order_by(*ordered))
    return [CommandKeyRow(*row) for row in found]


def insert_key(conn: Connection, row: CommandKeyRow) -> None:
    """Store a command key."""
    names = [column.name for column in command_keys.columns]
    values = (*row.authority_fields(), row.mac)
    conn.execute(insert(command_keys).values(dict(zip(names, values, strict=True))))


def save_key(conn: Connection, row: CommandKeyRow) -> None:
    """Write the phase of a command key, and what came with it, under its new MAC; the seal with it, which the MAC
    covers, and which a change of the secret encryption key may have replaced since the row was read."""
    values = {
        "sealed_private": row.sealed_private,
        "phase": row.phase,
        "verify_until_ms": row.verify_until_ms,
        "since_ms": row.since_ms,
        "mac": row.mac,
    }
    conn.execute(update(command_keys).where(command_keys.c.key_id == row.key_id).values(values))


def newest_bundle(conn: Connection, cluster_id: str) -> BundleRow | None:
    """The newest bundle of the newest generation."""
    ordered = trust_bundles.c.generation.desc(), trust_bundles.c.number.desc()
    newest = select(trust_bundles).where(trust_bundles.c.cluster_id == cluster_id).order_by(*ordered).limit(1)
    row = conn.execute(newest).fetchone()
    return None if row is None else BundleRow(*row)


def generation_steps(conn: Connection, cluster_id: str) -> list[BundleRow]:
    """The first bundle of each generation, ascending: from the second on, links that old and new authority both
    signed."""
    text = (
        "SELECT cluster_id, generation, number, signed, content_sha256, expires_at_ms FROM trust_bundles AS b"
        " WHERE cluster_id = ? AND number ="
        " (SELECT MIN(number) FROM trust_bundles WHERE cluster_id = b.cluster_id AND generation = b.generation)"
        " ORDER BY generation"
    )
    found = conn.exec_driver_sql(sql(conn, text), (cluster_id,))
    return [BundleRow(row[0], row[1], row[2], bytes(row[3]), bytes(row[4]), row[5]) for row in found]


def newest_version(conn: Connection, cluster_id: str) -> tuple[int, int] | None:
    """(generation, number) of the newest bundle."""
    version = trust_bundles.c.generation, trust_bundles.c.number
    newest = select(*version).where(trust_bundles.c.cluster_id == cluster_id).order_by(*(c.desc() for c in version))
    row = conn.execute(newest.limit(1)).fetchone()
    return None if row is None else (row[0], row[1])


def published(conn: Connection, cluster_id: str, versions: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those of `versions` that are bundles of the cluster."""
    columns = trust_bundles.c.generation, trust_bundles.c.number
    numbers = sorted({number for _, number in versions})
    found: set[tuple[int, int]] = set()
    for start in range(0, len(numbers), _CHUNK):
        chunk = trust_bundles.c.number.in_(numbers[start : start + _CHUNK])
        rows = conn.execute(select(*columns).where(trust_bundles.c.cluster_id == cluster_id, chunk))
        found |= {(row[0], row[1]) for row in rows}
    return sorted(found.intersection(versions))


def forget_bundles(conn: Connection, cluster_id: str, expired_before_ms: int) -> int:
    """Delete bundles that expired before a time, but for the newest one and the first of each generation, by which
    nodes walk to it; how many."""
    newest = newest_version(conn, cluster_id)
    if newest is None:
        return 0
    text = (
        "DELETE FROM trust_bundles WHERE cluster_id = ? AND expires_at_ms < ? AND NOT (generation = ? AND number = ?)"
        " AND number > (SELECT MIN(step.number) FROM trust_bundles AS step"
        " WHERE step.cluster_id = trust_bundles.cluster_id AND step.generation = trust_bundles.generation)"
    )
    return conn.exec_driver_sql(sql(conn, text), (cluster_id, expired_before_ms, *newest)).rowcount


def insert_bundle(conn: Connection, row: BundleRow) -> None:
    """Store a bundle. A version that exists already fails."""
    conn.execute(
        insert(trust_bundles).values(
            cluster_id=row.cluster_id,
            generation=row.generation,
            number=row.number,
            signed=row.signed,
            content_sha256=row.content_sha256,
            expires_at_ms=row.expires_at_ms,
        )
    )
