"""SQL of the server's TLS: its CAs, and the certificate that every replica shows. MACs are not checked here."""

from __future__ import annotations

from dataclasses import dataclass

from fleet_server.database.engine import Connection, sql

_CA_COLUMNS = (
    "sha256, cluster_id, certificate, own, sealed_private, phase, created_at_ms, since_ms, first_generation,"
    " first_number, mac"
)
_LEAF_COLUMNS = "cluster_id, ca_sha256, certificate, sealed_private, made_at_ms, mac"

# Names of columns are constants.
# ruff: noqa: S608


@dataclass(frozen=True, slots=True, repr=False)
class TlsCaRow:
    """A TLS CA; `sealed_private` is empty for one from outside and once its key was erased. `mac` covers every other
    field."""

    sha256: bytes
    cluster_id: str
    certificate: bytes
    own: int
    sealed_private: bytes
    phase: int
    created_at_ms: int
    since_ms: int
    first_generation: int
    first_number: int
    mac: bytes = b""

    def authority_fields(self) -> tuple[bytes | str | int, ...]:
        """What the MAC covers, in order."""
        return (
            self.sha256,
            self.cluster_id,
            self.certificate,
            self.own,
            self.sealed_private,
            self.phase,
            self.created_at_ms,
            self.since_ms,
            self.first_generation,
            self.first_number,
        )


@dataclass(frozen=True, slots=True, repr=False)
class TlsLeafRow:
    """The certificate that replicas show, with its sealed key. `mac` covers every other field."""

    cluster_id: str
    ca_sha256: bytes
    certificate: bytes
    sealed_private: bytes
    made_at_ms: int
    mac: bytes = b""

    def authority_fields(self) -> tuple[bytes | str | int, ...]:
        """What the MAC covers, in order."""
        return (self.cluster_id, self.ca_sha256, self.certificate, self.sealed_private, self.made_at_ms)


def cas(conn: Connection, cluster_id: str) -> list[TlsCaRow]:
    """Every TLS CA of a cluster, oldest first."""
    text = (
        f"SELECT {_CA_COLUMNS} FROM tls_cas WHERE cluster_id = ?"
        " ORDER BY created_at_ms, first_generation, first_number, sha256"
    )
    return [TlsCaRow(*row) for row in conn.exec_driver_sql(sql(conn, text), (cluster_id,))]


def insert_ca(conn: Connection, row: TlsCaRow) -> None:
    """Store a TLS CA. One that is there already fails."""
    text = f"INSERT INTO tls_cas ({_CA_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    conn.exec_driver_sql(sql(conn, text), (*row.authority_fields(), row.mac))


def save_ca(conn: Connection, row: TlsCaRow) -> None:
    """Write phase and key of a TLS CA under its new MAC."""
    text = "UPDATE tls_cas SET sealed_private = ?, phase = ?, since_ms = ?, mac = ? WHERE sha256 = ?"
    conn.exec_driver_sql(sql(conn, text), (row.sealed_private, row.phase, row.since_ms, row.mac, row.sha256))


def leaf(conn: Connection, cluster_id: str) -> TlsLeafRow | None:
    """The certificate that replicas show; None before the first."""
    text = f"SELECT {_LEAF_COLUMNS} FROM tls_leaves WHERE cluster_id = ?"
    row = conn.exec_driver_sql(sql(conn, text), (cluster_id,)).first()
    return None if row is None else TlsLeafRow(*row)


def put_leaf(conn: Connection, row: TlsLeafRow) -> None:
    """Store the certificate that replicas show, in place of the one before."""
    text = (
        f"INSERT INTO tls_leaves ({_LEAF_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (cluster_id) DO UPDATE SET"
        " ca_sha256 = excluded.ca_sha256, certificate = excluded.certificate, sealed_private = excluded.sealed_private,"
        " made_at_ms = excluded.made_at_ms, mac = excluded.mac"
    )
    conn.exec_driver_sql(sql(conn, text), (*row.authority_fields(), row.mac))
