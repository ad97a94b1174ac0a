"""Many replicas.

Rules of this and every later migration, for servers of the revision before go on working while it runs and beside
those of this one (a test holds them):
- It only adds: `add_column` with a server default, `create_table`, `create_index`. Nothing is dropped, renamed, made
  narrower or unique; an older server neither fills the new nor misses the old.
- A default is a constant: PostgreSQL then adds a column without writing the table again. What has to be computed is
  left to the servers, which find the default and write what they know.
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
