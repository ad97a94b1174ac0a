"""The schema of a release to come: its migrations, and a server that has them.

`python -m tests.fakes.newer_schema FOLDER run …` is `fleet-server run …` of that release.
"""

import shutil
import sys
from pathlib import Path

from fleet_server.database import migrate
from fleet_server.database.schema import metadata

_TABLES = """
import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"
oldest_server = "{oldest}"


def upgrade():
    for table in {tables}:
        op.add_column(table, sa.Column("of_later", sa.Text(), server_default="later", nullable=False))
    op.create_table("of_later", sa.Column("name", sa.Text(), primary_key=True))
"""
_INDEX = """
from fleet_server.database.migrations.indexes import create_index

revision = "{revision}"
down_revision = "{before}"
oldest_server = "{oldest}"


def upgrade():
    create_index("ix_of_later", "nodes", ["of_later"])
"""


def head() -> str:
    """The revision of this code."""
    return migrate.migrations()[-1].revision


def later(number: int) -> str:
    """The `number`th revision after it."""
    return f"{int(head()) + number:04}"


def write_migrations(folder: Path, *, oldest: str = "") -> Path:
    """The migrations of this code and two more: the first adds a column to every table there is, the second an index
    beside traffic. Each names `oldest`, by default this code's revision, as the oldest server beside it."""
    made = folder / "migrations"
    shutil.copytree(Path(migrate.__file__).with_name("migrations"), made, ignore=shutil.ignore_patterns("__pycache__"))
    names = {"oldest": oldest or head(), "tables": sorted(metadata.tables)}
    for number, text in ((1, _TABLES), (2, _INDEX)):
        revisions = {"revision": later(number), "before": later(number - 1)}
        (made / "versions" / f"v{later(number)}_later.py").write_text(text.format(**names, **revisions))
    return made


def main() -> None:
    """Run the later release."""
    from fleet_server.__main__ import main as run

    migrate.MIGRATIONS = Path(sys.argv[1])
    run(args=sys.argv[2:], prog_name="fleet-server")


if __name__ == "__main__":
    main()
