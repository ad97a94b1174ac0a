"""What is declared for others to read is also written: a metric that nothing feeds, a kind of audit row that nobody
appends or a reason that nobody gives would promise what does not happen."""

import ast
import re
from pathlib import Path

import pytest

from fleet.errors import Reason
from fleet_server.audit.kinds import AuditKind

ROOT = Path(__file__).parents[2]
SIDES = ("fleet_server", "fleet_node", "shared/fleet")


def sources(*folders: str, without: str) -> str:
    """Text of every module below the folders, but for the one that declares."""
    files = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return "\n".join(path.read_text() for path in files if not path.as_posix().endswith(without))


def metrics_of(module: Path) -> dict[str, set[str]]:
    """Attributes that hold a metric, by class; each with the names by which the class itself writes it."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ClassDef):
            methods = {item.name: ast.unparse(item) for item in node.body if isinstance(item, ast.FunctionDef)}
            for name in re.findall(r"self\.(\w+) = registry\.", methods.pop("__init__", "")):
                writers = {method for method, text in methods.items() if f"self.{name}." in text}
                found.setdefault(name, set()).update(writers)
    return found


@pytest.mark.parametrize("side", ["fleet_server", "fleet_node"])
def test_every_metric_is_fed(side: str) -> None:
    elsewhere = sources(side, without="metrics.py")
    unfed = {
        name
        for module in (ROOT / side / "observability").glob("*metrics.py")
        for name, writers in metrics_of(module).items()
        if not re.search(rf"metrics(\.\w+)?\.{name}\b", elsewhere)
        and not any(re.search(rf"\.{writer}\b", elsewhere) for writer in writers)
    }
    assert unfed == set()


def test_every_kind_of_audit_row_is_appended() -> None:
    elsewhere = sources("fleet_server", without="audit/kinds.py")
    assert {kind.name for kind in AuditKind if not re.search(rf"AuditKind\.{kind.name}\b", elsewhere)} == set()


def test_every_reason_is_given() -> None:
    elsewhere = sources(*SIDES, without="fleet/errors.py")
    assert {reason.name for reason in Reason if not re.search(rf"\bReason\.{reason.name}\b", elsewhere)} == set()
