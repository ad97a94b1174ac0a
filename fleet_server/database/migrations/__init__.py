"""Alembic migrations; run by `fleet_server.database.migrate`."""
