"""SQL stands in stores: `store.py` of a room, and `<subject>_store.py` where one file would be too many subjects. A
store is imported by its own room alone, and knows neither use cases nor gRPC."""

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("parsed modules")  # one process reads them

ROOT = Path(__file__).parents[2]
SIDES = ("fleet_server", "fleet_node")
# What makes, opens and copies whole databases.
DATABASES = ("fleet_server/database/", "fleet_node/commands/journal_file.py", "fleet_node/commands/journal_copy.py")
_SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|CREATE|PRAGMA|BEGIN)\s")
_NAMELESS = re.compile(r"\s*SELECT (\w+\.)?\*|INSERT INTO \w+\s+(VALUES|SELECT)")
_LIBRARIES = ("sqlalchemy", "psycopg", "alembic")
_STATEMENTS = {"exec_driver_sql", "executemany", "executescript"}
_SCHEMAS = re.compile(r"fleet_server\.database\.(statements|columns|(\w+_)?schema)")


def is_store(module: str) -> bool:
    return module.rpartition(".")[2].endswith("store") and not module.startswith("fleet_server.database")


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


@dataclass(frozen=True, slots=True)
class Module:
    """Of one module: names it imports, what is SQL or writes or runs it, and statements that name no columns."""

    imports: list[str]
    sql: list[str]
    nameless: list[str]


@functools.cache
def modules() -> dict[str, Module]:
    """Every module of both sides by its dotted name, read once."""
    files = (path for side in SIDES for path in (ROOT / side).rglob("*.py"))
    names = ((path, path.relative_to(ROOT).as_posix()) for path in files)
    return {
        name.removesuffix(".py").replace("/", "."): read(ast.parse(path.read_text()))
        for path, name in names
        if not name.startswith(DATABASES)
    }


def read(tree: ast.Module) -> Module:
    imports: list[str] = []
    sql: list[str] = []
    nameless: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imports.extend(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if _SQL.match(node.value):
                sql.append(f"line {node.lineno}: {node.value[:40]!r}")
            if _NAMELESS.match(node.value):
                nameless.append(f"line {node.lineno}")
        elif isinstance(node, ast.Attribute) and node.attr in _STATEMENTS:
            sql.append(f"line {node.lineno}: {node.attr}")
    sql.extend(f"imports {name}" for name in imports if name.split(".")[0] in _LIBRARIES or _SCHEMAS.match(name))
    return Module(imports, sql, nameless)


def test_sql_stands_in_stores_alone() -> None:
    found = {name: module.sql for name, module in modules().items() if not is_store(name)}
    assert {name: sql for name, sql in found.items() if sql} == {}


def test_a_store_of_sql_is_imported_by_its_own_room_alone() -> None:
    every = modules()
    stores = {name for name, module in every.items() if is_store(name) and module.sql}
    strangers = [
        (name, each)
        for name, module in every.items()
        for each in module.imports
        for store in stores.intersection((each, each.rpartition(".")[0]))
        if room(store) != room(name) and not each.endswith("Row")  # a row may be handed out
    ]
    assert len(stores) > 20
    assert strangers == [("fleet_node.app", "fleet_node.telemetry.spool_store.Spool")], (
        "the root builds it, no one else"
    )


def test_a_store_knows_neither_use_cases_nor_grpc() -> None:
    above = re.compile(r"grpc\b|fleet_(server|node)\.\w+\.(service|rpc)\b")
    stores = {name: module for name, module in modules().items() if is_store(name)}
    assert len(stores) > 20
    found = {name: [each for each in module.imports if above.match(each)] for name, module in stores.items()}
    assert {name: names for name, names in found.items() if names} == {}


def test_statements_name_their_columns() -> None:
    """A later release adds columns while servers of this one run."""
    found = {name: module.nameless for name, module in modules().items() if name.startswith("fleet_server")}
    assert {name: lines for name, lines in found.items() if lines} == {}
