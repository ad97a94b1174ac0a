"""`fleet-node audit`: what this node wrote down, read and verified on the node."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fleet_node.cli.grammar import Failure, Verb, json_option, node_options, printable, settings_from

if TYPE_CHECKING:
    from fleet_node.commands.audit_reading import NodeAuditCopy
    from fleet_node.commands.evidence_store import EvidenceRow

_HINT = (
    "copy the state folder before anything else, and compare with what the server has of this node: `fleetctl audit"
    " export`"
)


@click.command(cls=Verb, example="fleet-node audit --evidence\nfleet-node audit --json | jq '.rows[].kind'")
@click.option("--evidence", is_flag=True, help="Show what no server can make this node forget, and nothing else.")
@json_option
@node_options
def audit(evidence: bool, as_json: bool, config: Path | None, state_dir: Path | None) -> None:
    """Show and verify the audit that this node keeps itself. The daemon may run, and the server has no say in it.

    Rows that the server has acknowledged are forgotten here but for the last 256. Evidence is kept: refused orders of
    protected actions, intents that were used, pins, people's words, bundles, keys, floors and all other refusals, of
    each kind the newest 256 rows. The newest rows about commands that were accepted or ended follow within seconds.
    """
    settings = settings_from(config, state_dir).settings
    from fleet_node.cli.failures import told

    with told(settings.state_dir):
        from fleet_node.cli.journal_reading import enrolled, journal_copy
        from fleet_node.commands.audit_reading import read_audit_copy
        from fleet_node.enrollment.folder import StateFolder

        folder = StateFolder(settings.state_dir)
        membership = enrolled(folder, config, state_dir, "it has no audit")
        with journal_copy(folder, membership.node_id) as path:
            found = read_audit_copy(path, membership.node_id)
    rows = found.evidence if evidence else found.rows
    if as_json:
        click.echo(json.dumps(_document(membership.node_id, found, rows), indent=2))
    else:
        for line in (*_head(found), "", *map(_line, rows)):
            click.echo(printable(line))
    if found.findings:
        raise Failure("\n".join(found.findings), hint=_HINT)


def _document(node_id: str, found: NodeAuditCopy, rows: Sequence[EvidenceRow]) -> dict[str, Any]:
    return {
        "node_id": node_id,
        "chain": found.chain,
        "number": found.number,
        "hash": found.hash.hex(),
        "acknowledged": found.acked_number,
        "findings": list(found.findings),
        "evidence_gone": found.evidence_gone,
        "rows": [
            {
                "chain": row.chain,
                "number": row.number,
                "at_ms": row.at_ms,
                "kind": row.kind,
                "detail": _parsed(row.detail),
                "hash": row.hash.hex(),
            }
            for row in rows
        ],
    }


def _head(found: NodeAuditCopy) -> Iterator[str]:
    first = f"rows {found.rows[0].number} to {found.number}" if found.rows else "no rows"
    yield f"chain {found.chain}: {first} are here; the server says that it has {found.acked_number}"
    yield f"newest: {found.hash.hex() or 'none'}"
    gone = ", ".join(f"{count} {kind}" for kind, count in found.evidence_gone.items())
    older = f"; older ones that gave way: {gone}" if gone else ""
    yield f"evidence: {len(found.evidence)} rows are kept{older}"
    verdict = "verified: every row is what was hashed" if not found.findings else "NOT what was written: see below"
    yield verdict


def _line(row: EvidenceRow) -> str:
    at = datetime.fromtimestamp(min(row.at_ms, 253_402_300_799_000) / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    place = f"{row.chain}/{row.number}" if row.number else "-"  # it was counted, and stands in no chain
    return f"{place:<9} {at}  {row.kind:<20} {row.detail.decode('utf-8', 'replace')}"


def _parsed(detail: bytes) -> Any:
    try:
        return json.loads(detail)
    except ValueError:
        return detail.hex()
