"""SQL stands in stores: `store.py` of a room, and `<subject>_store.py` where one file would be too many subjects. A
store is imported by its own room alone, and knows neither use cases nor gRPC."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("parsed modules")  # one process parses them

ROOT = Path(__file__).parents[2]
SIDES = ("fleet_server", "fleet_node")
# What makes, opens and copies whole databases.
DATABASES = ("fleet_server/database/", "fleet_node/commands/journal_file.py", "fleet_node/commands/journal_copy.py")
_SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|CREATE|PRAGMA|BEGIN)\s")
_LIBRARIES = ("sqlalchemy", "psycopg", "alembic")
_STATEMENTS = {"exec_driver_sql", "executemany", "executescript"}
_SCHEMAS = re.compile(r"fleet_server\.database\.(statements|columns|(\w+_)?schema)")


def is_store(module: str) -> bool:
    return module.rpartition(".")[2].endswith("store") and not module.startswith("fleet_server.database")


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Every module of both sides by its dotted name, parsed."""
    files = (path for side in SIDES for path in (ROOT / side).rglob("*.py"))
    names = ((path, path.relative_to(ROOT).as_posix()) for path in files)
    return {
        name.removesuffix(".py").replace("/", "."): ast.parse(path.read_text())
        for path, name in names
        if not name.startswith(DATABASES)
    }


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sql_in(tree: ast.Module) -> Iterator[str]:
    """What of a module is SQL, or writes or runs it."""
    for name in imported(tree):
        if name.split(".")[0] in _LIBRARIES or _SCHEMAS.match(name):
            yield f"imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _SQL.match(node.value):
            yield f"line {node.lineno}: {node.value[:40]!r}"
        elif isinstance(node, ast.Attribute) and node.attr in _STATEMENTS:
            yield f"line {node.lineno}: {node.attr}"


def test_sql_stands_in_stores_alone() -> None:
    found = {name: list(sql_in(tree)) for name, tree in modules().items() if not is_store(name)}
    assert {name: sql for name, sql in found.items() if sql} == {}


def test_a_store_of_sql_is_imported_by_its_own_room_alone() -> None:
    every = modules()
    stores = {name for name, tree in every.items() if is_store(name) and any(sql_in(tree))}
    strangers = [
        (name, each)
        for name, tree in every.items()
        for each in imported(tree)
        for store in stores.intersection((each, each.rpartition(".")[0]))
        if room(store) != room(name) and not each.endswith("Row")  # a row may be handed out
    ]
    assert len(stores) > 20
    assert strangers == [("fleet_node.app", "fleet_node.telemetry.spool_store.Spool")], (
        "the root builds it, no one else"
    )


def test_a_store_knows_neither_use_cases_nor_grpc() -> None:
    above = re.compile(r"grpc\b|fleet_(server|node)\.\w+\.(service|rpc)\b")
    stores = {name: tree for name, tree in modules().items() if is_store(name)}
    assert len(stores) > 20
    found = {name: [each for each in imported(tree) if above.match(each)] for name, tree in stores.items()}
    assert {name: names for name, names in found.items() if names} == {}


def test_statements_name_their_columns() -> None:
    """A later release adds columns while servers of this one run."""
    nameless = re.compile(r"\s*SELECT (\w+\.)?\*|INSERT INTO \w+\s+(VALUES|SELECT)")
    found = [
        f"{name} line {node.lineno}"
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if name.startswith("fleet_server")
        and isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and nameless.match(node.value)
    ]
    assert found == []
