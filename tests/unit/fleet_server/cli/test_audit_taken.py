"""What a person took for history after a forgery is told apart from what was signed, as long as the audit stands."""

from tests.unit.fleet_server.cli.conftest import Fleetctl
from tests.unit.fleet_server.cli.test_telemetry_audit_keys import checkpoint, entries, exported


def exporting(ctl: Fleetctl, **details: bytes) -> None:
    """One `database.restored` of each writer."""
    rows = [entries(1, writer, "database.restored", detail=detail)[0] for writer, detail in details.items()]
    ctl.fake.answers["ExportAudit"] = [exported(rows, checkpoint(1, *rows))]


def test_rows_that_nobody_vouched_for_are_named(ctl: Fleetctl) -> None:
    exporting(ctl, restored=b'{"audit_unvouched":{"node:n-1":[4,4],"r-ghost":[1,7]}}')
    assert ctl.json("audit", "verify")["taken_unvouched"] == ["rows 4 to 4 of node:n-1", "rows 1 to 7 of r-ghost"]
    assert "rows 1 to 7 of r-ghost: on a person's word" in " ".join(ctl.run("audit", "verify").stdout.split())


def test_a_server_or_a_node_that_says_anything_else_breaks_nothing(ctl: Fleetctl) -> None:
    odd = {"r-1": b"[", "r-2": b"{}", "r-3": b'{"audit_unvouched":{"r":[1]}}', "r-4": b'{"audit_unvouched":7}'}
    exporting(ctl, **odd, **{"node:n-1": b'{"audit_unvouched":{"r-1":[1,2]}}'})
    assert ctl.json("audit", "verify")["taken_unvouched"] == []
