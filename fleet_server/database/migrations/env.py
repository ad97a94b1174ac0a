"""Runs inside Alembic, on the connection that `migrate` opened: there is no alembic.ini, and no URL passes through
here."""

from typing import Any

import sqlalchemy as sa
from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.script import Script

from fleet_server.database.schema import metadata


def _note(ctx: MigrationContext, step: MigrationInfo, *_: Any, **__: Any) -> None:
    """Write beside which servers the revision may run; each migration but the first names the oldest."""
    script = step.up_revision
    if not isinstance(script, Script) or script.down_revision is None:
        return  # the table comes with 0002
    revisions = sa.table("schema_revisions", sa.column("revision"), sa.column("oldest_server"))
    row = {"revision": script.revision, "oldest_server": script.module.oldest_server}
    if ctx.connection is not None:
        ctx.connection.execute(revisions.insert().values(row))


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=True,
    on_version_apply=_note,
)
with context.begin_transaction():
    context.run_migrations()
