"""Which columns of which table carry a MAC or are sealed under the secret encryption key: what `secrets rekey` walks.

The rooms compute and check their MACs themselves; here stands what they cover, so that all of it can be done anew. A
test compares this list with the schema, and another looks at every room's rows after a change of the key.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MarkedTable:
    """One table.

    Args:
        name: of the table.
        key: columns of its primary key.
        covered: columns under its `mac`, in the order in which the room gives them; none without one.
        sealed: column that holds something sealed, or nothing.
        place: for what it is sealed: `{column}` of a row, bytes as hexadecimal.
    """

    name: str
    key: tuple[str, ...]
    covered: tuple[str, ...] = ()
    sealed: str = ""
    place: str = ""


MARKED_TABLES = (
    MarkedTable(
        "cluster_authorities",
        ("cluster_id", "generation"),
        sealed="sealed_private",
        place="cluster_authorities/{cluster_id}/{generation}",
    ),
    MarkedTable("clusters", ("cluster_id",), ("cluster_id", "installation_id", "name", "created_at_ms")),
    MarkedTable(
        "command_keys",
        ("key_id",),
        (
            "key_id",
            "cluster_id",
            "site",
            "public_key",
            "sealed_private",
            "phase",
            "not_before_ms",
            "verify_until_ms",
            "created_at_ms",
            "since_ms",
            "first_generation",
            "first_number",
        ),
        sealed="sealed_private",
        place="command_keys/{key_id}",
    ),
    MarkedTable(
        "gateway_endpoints",
        ("cluster_id", "replica_id"),
        ("cluster_id", "replica_id", "endpoints", "since_ms", "stated_ms"),
    ),
    MarkedTable(
        "operators",
        ("operator_id",),
        ("operator_id", "name", "role", "token_sha256", "created_at_ms", "revoked_at_ms"),
    ),
    MarkedTable("operator_keys", ("key_id",), ("key_id", "cluster_id", "operator", "public_key", "enrolled_at_ms")),
    MarkedTable("cluster_people", ("cluster_id",), ("cluster_id", "kept")),
    MarkedTable(
        "join_tokens",
        ("token_id",),
        (
            "token_id",
            "cluster_id",
            "secret_sha256",
            "site",
            "max_uses",
            "uses",
            "auto_approve",
            "created_by",
            "created_at_ms",
            "expires_at_ms",
            "revoked_at_ms",
        ),
    ),
    MarkedTable(
        "enrollments",
        ("enrollment_id",),
        (
            "enrollment_id",
            "cluster_id",
            "token_id",
            "identity_key",
            "sealing_key",
            "name",
            "site",
            "reported_labels",
            "version",
            "peer_address",
            "state",
            "created_at_ms",
            "decided_at_ms",
            "decided_by",
            "reason",
            "node_id",
            "bootstrap",
        ),
    ),
    MarkedTable(
        "nodes",
        ("node_id",),
        (
            "node_id",
            "cluster_id",
            "name",
            "site",
            "identity_key",
            "sealing_key",
            "labels",
            "state",
            "state_reason",
            "enrolled_at_ms",
        ),
    ),
    MarkedTable(
        "node_ratchets",
        ("node_id",),
        (
            "node_id",
            "confirmed_sha256",
            "sealed_offer",
            "any_until_ms",
            "seq_floor",
            "floor_at_ms",
            "audit_chain",
            "boots",
        ),
        sealed="sealed_offer",
        place="node_ratchets/{node_id}",
    ),
    MarkedTable("api_keys", ("key_sha256",), ("key_sha256", "node_id", "created_at_ms", "revoked_at_ms")),
    MarkedTable(
        "credential_rotations",
        ("node_id",),
        (
            "node_id",
            "wanted",
            "old_until_ms",
            "ordered_by",
            "ordered_at_ms",
            "new_key_sha256",
            "sealed_api_key",
            "keys_issued_at_ms",
        ),
    ),
    MarkedTable(
        "sessions",
        ("token_sha256",),
        sealed="sealed_frame_keys",
        place="sessions/{token_sha256}/{node_id}/{client_certificate_sha256}",
    ),
    MarkedTable(
        "approvals",
        ("approval_id",),
        (
            "approval_id",
            "cluster_id",
            "action",
            "arguments",
            "intent",
            "ttl_s",
            "created_by",
            "created_at_ms",
            "expires_at_ms",
            "state",
            "issue_id",
            "closed_by",
            "reason",
        ),
    ),
    MarkedTable("audit_heads", ("writer",), ("writer", "number", "hash")),
    MarkedTable("audit_newest", ("cluster_id",), ("cluster_id", "number", "sha256", "since")),
    MarkedTable(
        "tls_cas",
        ("sha256",),
        (
            "sha256",
            "cluster_id",
            "certificate",
            "own",
            "sealed_private",
            "phase",
            "created_at_ms",
            "since_ms",
            "first_generation",
            "first_number",
        ),
        sealed="sealed_private",
        place="tls_cas/{sha256}",
    ),
    MarkedTable(
        "tls_leaves",
        ("cluster_id",),
        ("cluster_id", "ca_sha256", "certificate", "sealed_private", "made_at_ms"),
        sealed="sealed_private",
        place="tls_leaves/{cluster_id}",
    ),
    MarkedTable(
        "routes",
        ("route_id",),
        (
            "route_id",
            "cluster_id",
            "name",
            "source_node_id",
            "destination_node_id",
            "service_class",
            "probe_interval_ms",
            "enabled",
            "created_at_ms",
            "created_by",
            "generation",
            "relay_node_id",
            "candidates",
            "waiting_rendezvous",
            "decided_at_ms",
        ),
    ),
    MarkedTable(
        "relays", ("node_id",), ("node_id", "cluster_id", "site", "capacity", "weight", "added_at_ms", "added_by")
    ),
    MarkedTable(
        "route_leases",
        ("route_id",),
        ("route_id", "lease_id", "relay_node_id", "generation", "issued_at_ms", "expires_at_ms", "withdrawn"),
    ),
    MarkedTable("route_peers", ("node_id",), ("node_id", "endpoints", "certificate", "reported_at_ms")),
    MarkedTable("sealed_secrets", ("name",), sealed="sealed", place="sealed_secrets/{name}"),
    MarkedTable("secret_key_state", ("name",), ("name", "key_id", "changed_at_ms", "done_at_ms")),
)
"""Every such table but `commands`, whose MAC reaches into the issue: that room has a walk of its own."""
