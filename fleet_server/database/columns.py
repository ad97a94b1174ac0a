"""What all tables share: their list, the names of their constraints, and types that two dialects spell differently."""

from __future__ import annotations

from sqlalchemy import BigInteger, Integer, MetaData, String

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite only gives rowid speed (and AUTOINCREMENT) to INTEGER, PostgreSQL needs 64 bits.
Position = BigInteger().with_variant(Integer, "sqlite")


def id_column(length: int = 64) -> String:
    """The type of ids."""
    return String(length)
