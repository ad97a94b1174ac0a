"""Runs inside Alembic, on the connection that `migrate` opened: there is no alembic.ini, and no URL passes through
here."""

from alembic import context

from fleet_server.database.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
