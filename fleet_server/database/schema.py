"""Tables, one list for SQLite and PostgreSQL. Alembic migrations build exactly this; a test compares the two.

Times are Unix milliseconds. States are integers where a hot path writes them and words elsewhere. A column named
`mac` is an HMAC-SHA256 over the row's authority (docs/protocol.md, "Rows that confer authority"): a row that was
written around the server is found before it is used. Each table belongs to one room; no other room reads it.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from fleet_server.database import (  # noqa: F401 - tables of the same list
    audit_schema,
    credential_schema,
    installation_schema,
    people_schema,
    replica_schema,
    route_schema,
    tls_schema,
)
from fleet_server.database.columns import Position, metadata
from fleet_server.database.columns import id_column as _id

__all__ = ["metadata"]

# -- trust -----------------------------------------------------------------------------------------
clusters = Table(
    "clusters",
    metadata,
    Column("cluster_id", _id(), primary_key=True),
    Column("installation_id", _id(), nullable=False),
    Column("name", String(63), nullable=False, unique=True),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("mac", LargeBinary, nullable=False),
)

cluster_authorities = Table(
    "cluster_authorities",
    metadata,
    Column("cluster_id", ForeignKey("clusters.cluster_id"), primary_key=True),
    Column("generation", BigInteger, primary_key=True, autoincrement=False),
    Column("public_key", LargeBinary, nullable=False),
    Column("sealed_private", LargeBinary, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
)

command_keys = Table(
    "command_keys",
    metadata,
    Column("key_id", LargeBinary(16), primary_key=True),
    Column("cluster_id", ForeignKey("clusters.cluster_id"), nullable=False),
    Column("site", String(63), nullable=False),
    Column("public_key", LargeBinary, nullable=False),
    Column("sealed_private", LargeBinary, nullable=False),
    Column("phase", Integer, nullable=False),
    Column("not_before_ms", BigInteger, nullable=False),
    Column("verify_until_ms", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("since_ms", BigInteger, nullable=False),
    Column("first_generation", BigInteger, nullable=False),
    Column("first_number", BigInteger, nullable=False),
    Column("mac", LargeBinary, nullable=False),
)

trust_bundles = Table(
    "trust_bundles",
    metadata,
    Column("cluster_id", ForeignKey("clusters.cluster_id"), primary_key=True),
    Column("generation", BigInteger, primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("signed", LargeBinary, nullable=False),
    Column("content_sha256", LargeBinary, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
)

# What each replica wants nodes to be offered.
gateway_endpoints = Table(
    "gateway_endpoints",
    metadata,
    Column("cluster_id", ForeignKey("clusters.cluster_id"), primary_key=True),
    Column("replica_id", _id(), primary_key=True),
    Column("endpoints", Text, nullable=False),
    Column("since_ms", BigInteger, nullable=False),
    Column("stated_ms", BigInteger, nullable=False),
    Column("mac", LargeBinary, nullable=False),
)

# -- admin: who may call ---------------------------------------------------------------------------
operators = Table(
    "operators",
    metadata,
    Column("operator_id", _id(), primary_key=True),
    Column("name", String(63), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("token_sha256", LargeBinary(32), nullable=False, unique=True),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("revoked_at_ms", BigInteger, nullable=False, server_default="0"),
    Column("mac", LargeBinary, nullable=False),
)

# -- enrollment ------------------------------------------------------------------------------------
join_tokens = Table(
    "join_tokens",
    metadata,
    Column("token_id", _id(), primary_key=True),
    Column("cluster_id", ForeignKey("clusters.cluster_id"), nullable=False),
    Column("secret_sha256", LargeBinary(32), nullable=False),
    Column("site", String(63), nullable=False),
    Column("max_uses", Integer, nullable=False),
    Column("uses", Integer, nullable=False, server_default="0"),
    Column("auto_approve", Integer, nullable=False),
    Column("created_by", String(63), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("revoked_at_ms", BigInteger, nullable=False, server_default="0"),
    Column("mac", LargeBinary, nullable=False),
)

enrollments = Table(
    "enrollments",
    metadata,
    Column("enrollment_id", _id(), primary_key=True),
    Column("cluster_id", ForeignKey("clusters.cluster_id"), nullable=False),
    Column("token_id", ForeignKey("join_tokens.token_id"), nullable=False),
    Column("identity_key", LargeBinary(32), nullable=False),
    Column("sealing_key", LargeBinary(32), nullable=False),
    Column("name", String(63), nullable=False),
    Column("site", String(63), nullable=False),
    Column("reported_labels", Text, nullable=False),
    Column("version", String(64), nullable=False),
    Column("peer_address", String(64), nullable=False),
    Column("state", Integer, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("decided_at_ms", BigInteger, nullable=False, server_default="0"),
    Column("decided_by", String(63), nullable=False, server_default=""),
    Column("reason", String(500), nullable=False, server_default=""),
    Column("node_id", _id(), nullable=False, server_default=""),
    Column("bootstrap", LargeBinary),
    Column("mac", LargeBinary, nullable=False),
    UniqueConstraint("token_id", "identity_key", "sealing_key"),
    Index("ix_enrollments_created", "created_at_ms"),
)

# -- nodes -----------------------------------------------------------------------------------------
nodes = Table(
    "nodes",
    metadata,
    Column("node_id", _id(), primary_key=True),
    Column("cluster_id", ForeignKey("clusters.cluster_id"), nullable=False),
    Column("name", String(63), nullable=False, unique=True),
    Column("site", String(63), nullable=False),
    Column("identity_key", LargeBinary(32), nullable=False, unique=True),
    Column("sealing_key", LargeBinary(32), nullable=False),
    Column("labels", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("state_reason", String(500), nullable=False, server_default=""),
    Column("enrolled_at_ms", BigInteger, nullable=False),
    Column("mac", LargeBinary, nullable=False),
    # What changes while the node lives; outside the MAC, for it confers nothing.
    Column("last_seq", BigInteger, nullable=False, server_default="0"),
    Column("last_accepted_seq", BigInteger, nullable=False, server_default="0"),
    Column("stream_epoch", BigInteger, nullable=False, server_default="0"),
    Column("stream_id", _id(), nullable=False, server_default=""),
    Column("replica_id", _id(), nullable=False, server_default=""),
    Column("online", Integer, nullable=False, server_default="0"),
    Column("last_seen_ms", BigInteger, nullable=False, server_default="0"),
    Column("rtt_us", BigInteger, nullable=False, server_default="0"),
    Column("clock_offset_ms", BigInteger, nullable=False, server_default="0"),
    Column("drain_state", String(16), nullable=False, server_default="NONE"),
    Column("drain_deadline_ms", BigInteger, nullable=False, server_default="0"),
    # When something was decided about the node last: other replicas look for it.
    Column("decided_at_ms", BigInteger, nullable=False, server_default="0"),
    # Which stream the newest one took over from.
    Column("takeover_of", _id(), nullable=False, server_default=""),
    Index("ix_nodes_decided_at", "decided_at_ms"),
)

node_profiles = Table(
    "node_profiles",
    metadata,
    Column("node_id", ForeignKey("nodes.node_id"), primary_key=True),
    Column("version", String(64), nullable=False),
    Column("reported_labels", Text, nullable=False),
    Column("drivers", LargeBinary, nullable=False),
    Column("drivers_sha256", LargeBinary(32), nullable=False),
    Column("max_in_flight", Integer, nullable=False),
    Column("bundle_generation", BigInteger, nullable=False),
    Column("bundle_number", BigInteger, nullable=False),
    Column("config_version", BigInteger, nullable=False),
)

# -- sessions --------------------------------------------------------------------------------------
api_keys = Table(
    "api_keys",
    metadata,
    Column("key_sha256", LargeBinary(32), primary_key=True),
    Column("node_id", ForeignKey("nodes.node_id"), nullable=False, index=True),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("revoked_at_ms", BigInteger, nullable=False, server_default="0"),
    Column("mac", LargeBinary, nullable=False),
)

# What the node's next hello must show, and the floor under its seqs after it was adopted.
node_ratchets = Table(
    "node_ratchets",
    metadata,
    Column("node_id", ForeignKey("nodes.node_id"), primary_key=True),
    Column("confirmed_sha256", LargeBinary(32), nullable=False),
    Column("sealed_offer", LargeBinary, nullable=False),
    Column("any_until_ms", BigInteger, nullable=False),
    Column("seq_floor", BigInteger, nullable=False),
    Column("floor_at_ms", BigInteger, nullable=False),
    Column("audit_chain", BigInteger, nullable=False),
    Column("boots", LargeBinary, nullable=False),
    Column("mac", LargeBinary, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("token_sha256", LargeBinary(32), primary_key=True),
    Column("node_id", _id(), nullable=False),
    Column("sealed_frame_keys", LargeBinary, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False, index=True),
    Column("claimed_epoch", BigInteger, nullable=False, server_default="0"),
    Column("client_certificate_sha256", LargeBinary, nullable=False),
)

# -- commands --------------------------------------------------------------------------------------
command_issues = Table(
    "command_issues",
    metadata,
    Column("issue_id", _id(), primary_key=True),
    Column("cluster_id", _id(), nullable=False),
    Column("actor", String(63), nullable=False),
    Column("idempotency_key", String(128)),
    Column("request_sha256", LargeBinary(32), nullable=False),
    Column("specs", LargeBinary, nullable=False),  # serialised fleet.v1.IssueCommandsRequest, commands only
    Column("refused", LargeBinary, nullable=False),  # serialised fleet.v1.IssueCommandsResponse, refused only
    Column("issued_count", Integer, nullable=False),
    Column("issued_at_ms", BigInteger, nullable=False),
    Column("not_after_ms", BigInteger, nullable=False),
    UniqueConstraint("actor", "idempotency_key", name="uq_command_issues_idempotency"),
    Index("ix_command_issues_issued_at", "issued_at_ms"),
)

# The widest and hottest table: action, arguments, actor and times of a command stand once in its issue. No index has
# its state, nor anything else that an update changes: PostgreSQL then updates a row where it stands and writes no index
# entry, as long as its page has room. `fillfactor` leaves it for two more versions of each row, accepted and ended: a
# third of what the log would hold otherwise and half of the processor's time are worth the larger table. Open commands
# are found by way of `command_runs`.
commands = Table(
    "commands",
    metadata,
    Column("node_id", _id(), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("command_id", LargeBinary(16), nullable=False),
    Column("issue_id", _id(), nullable=False),
    Column("spec_no", Integer, nullable=False),
    Column("not_after_ms", BigInteger, nullable=False),
    Column("mac", LargeBinary, nullable=False),
    Column("state", Integer, nullable=False),
    Column("cancel_requested_by", String(63), nullable=False, server_default=""),
    Column("key_id", LargeBinary(16)),
    Column("sent_at_ms", BigInteger, nullable=False, server_default="0"),
    Column("accepted_at_ms", BigInteger, nullable=False, server_default="0"),
    Column("started_at_ms", BigInteger, nullable=False, server_default="0"),
    Column("finished_at_ms", BigInteger, nullable=False, server_default="0"),
    Column("output", LargeBinary),
    Column("output_truncated", Integer, nullable=False, server_default="0"),
    Column("reason", String(64), nullable=False, server_default=""),
    Column("error", Text, nullable=False, server_default=""),
    Index("ix_commands_command_id", "command_id", unique=True),
    sqlite_with_rowid=False,
    postgresql_with={"fillfactor": 35},
)

# Which commands an issue holds: of each node as many as it was issued, from `first_seq` on. An index over the commands
# themselves would be one entry for each of them. Confers no authority: what is shown of it has to name the issue too.
# 1 = it may hold open commands, 0 = all of them have ended: the index of the open ones is small however long the
# history grows.
command_runs = Table(
    "command_runs",
    metadata,
    Column("issue_id", _id(), primary_key=True),
    Column("node_id", _id(), primary_key=True),
    Column("first_seq", BigInteger, nullable=False),
    Column("count", Integer, nullable=False),
    Column("is_open", Integer, nullable=False, server_default="1"),
    Index("ix_command_runs_open", "node_id", sqlite_where=text("is_open = 1"), postgresql_where=text("is_open = 1")),
    sqlite_with_rowid=False,
)

# -- telemetry -------------------------------------------------------------------------------------
telemetry_series = Table(
    "telemetry_series",
    metadata,
    Column("node_id", _id(), primary_key=True),
    Column("series_no", Integer, primary_key=True, autoincrement=False),
    Column("name", String(200), nullable=False),
    Column("labels", Text, nullable=False),
    Column("kind", Integer, nullable=False),
    Column("unit", String(32), nullable=False),
)

telemetry_chunks = Table(
    "telemetry_chunks",
    metadata,
    Column("position", Position, primary_key=True),
    Column("node_id", _id(), nullable=False),
    Column("start_ms", BigInteger, nullable=False),
    Column("end_ms", BigInteger, nullable=False),
    Column("samples", Integer, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("ix_telemetry_chunks_node_time", "node_id", "start_ms"),
    Index("ix_telemetry_chunks_end", "end_ms"),
)

telemetry_latest = Table(
    "telemetry_latest",
    metadata,
    Column("node_id", _id(), primary_key=True),
    Column("last_batch_seq", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("expired_at_ms", BigInteger, nullable=False, server_default="0"),
)
telemetry_exports = Table(
    "telemetry_exports",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("holder", String(80), nullable=False),
    Column("beat", BigInteger, nullable=False),
)

# -- audit -----------------------------------------------------------------------------------------
audit_rows = Table(
    "audit_rows",
    metadata,
    Column("position", Position, primary_key=True),
    Column("writer", _id(), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("actor", String(80), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("detail", LargeBinary, nullable=False),
    Column("previous_hash", LargeBinary(32), nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
    UniqueConstraint("writer", "number"),
)

audit_heads = Table(
    "audit_heads",
    metadata,
    Column("writer", _id(), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
    Column("mac", LargeBinary, nullable=False),
)

audit_checkpoints = Table(
    "audit_checkpoints",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("position", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("signed", LargeBinary, nullable=False),
)
