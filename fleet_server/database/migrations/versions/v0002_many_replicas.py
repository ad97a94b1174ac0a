"""Many replicas.

Rules of this and every later migration, for servers of the revision before go on working while it runs and beside
those of this one (a test holds them):
- To tables and columns it only adds: `add_column` with a server default, `create_table`, `create_index`. Nothing is
  dropped, renamed, made narrower or unique; an older server neither fills the new nor misses the old.
- An index may go, but not in a migration: older servers' statements would read whole tables. It is named in
  `database/retired.py`, and goes with the first `db upgrade` that finds no older server.
- A default is a constant: PostgreSQL then adds a column without writing the table again. What has to be computed is
  left to the servers, which find the default and write what they know; but a column that it adds it may give another
  default for rows to come, and another value in the few rows that need one (SQLite: in any, its server is stopped).
- What it adds stands last in its table in `schema.py`, in this order.
- A migration that was released is never changed. `oldest_server` names the oldest revision whose servers may run on a
  database that has this one; it is written to `schema_revisions`, where older servers read it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
oldest_server = "0001"


def upgrade() -> None:
    op.create_table(
        "schema_revisions",
        sa.Column("revision", sa.String(length=32), nullable=False),
        sa.Column("oldest_server", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("revision", name=op.f("pk_schema_revisions")),
    )
    # Which process beats under the id, and where it is reached; empty from an older server.
    op.add_column("replicas", sa.Column("boot_id", sa.String(length=64), server_default="", nullable=False))
    op.add_column("replicas", sa.Column("endpoints", sa.Text(), server_default="", nullable=False))
    # Which schema the server was built with; empty means 0001.
    op.add_column("replicas", sa.Column("schema_revision", sa.String(length=32), server_default="", nullable=False))
    # How many streams it may hold, 0 for unknown, and how many handshakes a second it takes on now.
    op.add_column("replicas", sa.Column("max_streams", sa.Integer(), server_default="0", nullable=False))
    op.add_column("replicas", sa.Column("admitted_per_s", sa.Double(), server_default="0", nullable=False))
    # Which stream the newest one took over from.
    op.add_column("nodes", sa.Column("takeover_of", sa.String(length=64), server_default="", nullable=False))
    # Telemetry that goes out: how far, and by whom; and whether numbers of a node's series were given away.
    op.add_column("telemetry_latest", sa.Column("expired_at_ms", sa.BigInteger(), server_default="0", nullable=False))
    op.create_table(
        "telemetry_exports",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.String(length=80), nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_telemetry_exports")),
    )
    # Counts commits of the replica, not each: what it knows to be committed, a database that went back has not.
    op.add_column("replicas", sa.Column("commit_mark", sa.BigInteger(), server_default="0", nullable=False))
    op.create_table(
        "rewinds",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("found_by", sa.String(length=64), nullable=False),
        sa.Column("settled_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_rewinds")),
    )
    # 1 = may hold open commands: so is what an older server inserts. What there was has ended, but for what is open.
    is_postgresql = op.get_context().dialect.name == "postgresql"
    before = "0" if is_postgresql else "1"
    op.add_column("command_runs", sa.Column("is_open", sa.Integer(), server_default=before, nullable=False))
    if is_postgresql:
        op.alter_column("command_runs", "is_open", server_default="1")
        op.execute(
            "UPDATE command_runs SET is_open = 1"
            " WHERE (issue_id, node_id) IN (SELECT issue_id, node_id FROM commands WHERE state < 5)"
        )
        # Of rows to come: a page has room for two more versions of each row, so that updates need no index entries.
        op.execute("ALTER TABLE commands SET (fillfactor = 35)")
    else:  # no default is ever changed; its server is stopped, and all rows may be written
        op.execute(
            "UPDATE command_runs SET is_open = 0"
            " WHERE (issue_id, node_id) NOT IN (SELECT issue_id, node_id FROM commands WHERE state < 5)"
        )
    op.create_index(
        "ix_command_runs_open",
        "command_runs",
        ["node_id"],
        sqlite_where=sa.text("is_open = 1"),
        postgresql_where=sa.text("is_open = 1"),
    )
