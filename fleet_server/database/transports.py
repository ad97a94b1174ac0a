"""Which way wake-ups take to the other replicas, by the setting `wakeup`."""

from __future__ import annotations

from pathlib import Path

from fleet_server.database import dialects
from fleet_server.database.relay import Transport

OFF, AUTO, NOTIFY = "off", "auto", "notify"
_SCHEMES = ("nats://", "tls://")


def servers_of(wakeup: str) -> tuple[str, ...]:
    """Addresses of NATS servers that the setting names; none for a word."""
    return tuple(part.strip() for part in wakeup.split(",")) if wakeup.startswith(_SCHEMES) else ()


def transport_for(
    wakeup: str, *, database_url: str, cluster_id: str, ca_file: Path | None, credentials_file: Path | None
) -> Transport | None:
    """The transport that a server uses; None when nobody else is to be woken.

    Args:
        wakeup: the setting, checked.
        database_url: see `dialects.parse_url`. SQLite serves one process: there are no others.
        cluster_id: whose replicas talk to each other.
        ca_file: for NATS over TLS.
        credentials_file: for NATS.
    """
    if wakeup == OFF or dialects.dialect_of(dialects.parse_url(database_url)) == "sqlite":
        return None
    servers = servers_of(wakeup)
    if servers:
        from fleet_server.database.nats_relay import NatsTransport

        subject = f"fleet.{cluster_id}.wakeup"
        return NatsTransport(servers, subject=subject, ca_file=ca_file, credentials_file=credentials_file)
    from fleet_server.database.notify import NotifyTransport

    return NotifyTransport(database_url)
