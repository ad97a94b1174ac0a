"""Indexes on tables that servers write to meanwhile."""

from alembic import op

from fleet_server.database.dialects import SCHEMA_LOCK_TIMEOUT_MS


def create_index(name: str, table: str, columns: list[str]) -> None:
    """Build an index beside traffic: PostgreSQL then reads the table without keeping writers out, in no transaction.

    A migration that does this does nothing else: what was done of it before it broke off stands, and it runs again.
    """
    context = op.get_context()
    if context.dialect.name != "postgresql":
        op.create_index(name, table, columns)
        return
    with context.autocommit_block():
        # Whoever waits for others' transactions here keeps nobody out.
        op.execute("SET lock_timeout = 0")
        try:
            # An index that broke off is there, costs what one costs, and is never used.
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.create_index(name, table, columns, postgresql_concurrently=True)
        finally:
            op.execute(f"SET lock_timeout = {SCHEMA_LOCK_TIMEOUT_MS}")
