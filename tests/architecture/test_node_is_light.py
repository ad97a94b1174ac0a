"""What a node's daemon loads: its memory on small machines is a promise (docs/performance.md, A7)."""

import subprocess
import sys

_HEAVY = (
    "cryptography.x509",
    "cryptography.hazmat.primitives.serialization",
    "difflib",
    "sqlalchemy",
    "rich",
    "uvloop",
    "pydantic",
    "fleet_node.doctor",
    "fleet_node.routes.service",
    "fleet_node.routes.prober",
    "fleet_node.routes.rpc",
    "fleet_node.backup.archive",
    "fleet_node.routes.leaf",
    "fleet_node.routes.rpc",
)


def test_the_daemon_loads_nothing_that_only_other_verbs_need() -> None:
    code = f"import fleet_node.cli.run, fleet_node.app, sys; print([m for m in {_HEAVY!r} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
