"""`fleetctl audit`: read the audit, and verify that nothing in it was changed, removed, reordered or cut off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from fleet_server.cli.failures import BadProfile, Failed
from fleet_server.cli.grammar import Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled, counted, excerpt

if TYPE_CHECKING:
    from fleet.audit_chain import ChainSummary, ChainVerifier
    from fleet.audit_crosscheck import CrossCheckSummary, LaterChain
    from fleet.v1 import admin_pb2
    from fleet_server.cli.audit_reading import AuditReading
    from fleet_server.cli.connection import Admin
    from fleet_server.cli.node_names import NodeNames
    from fleet_server.cli.profile import Context

_COLUMNS = [
    Column("TIME"),
    Column("KIND", reserve=20),
    Column("ACTOR", flexible=True, least=8, reserve=8),
    Column("SUBJECT", flexible=True, least=10, reserve=10),
    Column("WRITER", spare=1),
    Column("NO", right=True, spare=2),
    Column("DETAIL", flexible=True, least=16),
]
_DETAIL_CELLS = 160
_READ_CELLS = 4 * _DETAIL_CELLS  # names are shorter than ids
_SIGNED_WITHIN_S = 10.0


@click.group(cls=Noun)
def audit() -> None:
    """Read, verify and export the audit."""


@audit.command("tail", example="fleetctl audit tail -n 50 --follow")
@click.option("-n", "--lines", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Newest rows.")
@click.option("--follow", "-f", is_flag=True, help="Go on with new rows until Ctrl-C.")
@click.pass_obj
def tail(invocation: Invocation, lines: int, follow: bool) -> None:
    """Show the newest rows, nodes by name. Shown is not verified: see `fleetctl audit verify`.

    JSON has every row as it was written, with the ids of nodes.
    """
    from fleet.v1 import admin_pb2
    from fleet_server.cli.node_names import NodeNames
    from fleet_server.cli.views import to_json

    request = admin_pb2.ExportAuditRequest(last=lines, follow=follow)
    shown: list[list[Cell]] = []
    growing = invocation.running_table(_COLUMNS)
    with invocation.connect() as admin:
        names = NodeNames(admin)
        for change in _rows(admin, request):
            if invocation.wants_json:
                for entry in change.entries:
                    invocation.emit_json_line(to_json(entry))
            elif follow and change.entries:
                invocation.emit_text(growing.add(_shown_rows(change.entries, names)))
            else:
                shown += _shown_rows(change.entries, names)
    if not follow and not invocation.wants_json:
        invocation.emit_table(_COLUMNS, shown)


@audit.command("verify", example="fleetctl audit verify")
@click.option("--authority-key", metavar="HEX", help="Raw public key of the first authority, if no login pinned it.")
@click.option("--cluster", metavar="ID", help="Cluster id, when no login has pinned it.")
@click.option(
    "--signed-within",
    type=click.FloatRange(0),
    default=_SIGNED_WITHIN_S,
    show_default=True,
    metavar="SECONDS",
    help="So long a row may wait for a signed checkpoint.",
)
@click.pass_obj
def verify(invocation: Invocation, authority_key: str | None, cluster: str | None, signed_within: float) -> None:
    """Read the whole audit, the nodes' own chains with it, and check every hash, every link and every signed
    checkpoint on this machine. Then hold what each node says against what the server says of it, command by command.

    Checkpoints must be signed by the authority that was pinned at login, or one that followed it, and the newest must
    not be older than the newest that you saw before: so not even the server can take back what it once showed you. Ends
    with 1 and the name of what is wrong:
    CHANGED, REMOVED, REORDERED, TRUNCATED, CHECKPOINT_MISMATCH, CHECKPOINT_BAD_SIGNATURE, CHECKPOINT_ROLLED_BACK
    or UNSIGNED (the server signs within seconds what it wrote itself);
    of what each node signs with its own key NODE_SIGNATURE_WRONG, NODE_KEY_CHANGED or NODE_UNSIGNED;
    between node and server NEVER_ISSUED, DIGEST_DIFFERS, OUTCOME_DIFFERS, MISSING_ON_NODE, CHAIN_NOT_OPENED,
    NODE_ROW_MALFORMED or SERVER_ROW_MALFORMED.

    A node that was adopted goes on in another chain. Each is checked and named, with what it says it continues and how
    many rows of the older chain stand behind that: they stay, and the machine that was adopted does not have them.
    """
    from fleet.audit_findings import AuditFinding
    from fleet_server.cli.audit_reading import AuditReading
    from fleet_server.cli.progress import Bar

    context = invocation.context()
    pinned, cluster_id = _pins(authority_key, cluster, context)
    try:
        with invocation.connect() as admin:
            verifier = _verifier(invocation, admin, pinned, cluster_id)
            with Bar("verifying rows", None) as bar:
                reading = AuditReading(admin, verifier, bar.show)
                summary, agreed = reading.run(signed_within)
    except AuditFinding as finding:
        if invocation.wants_json:
            invocation.emit_json({"verified": False, "finding": finding.code, "message": str(finding)})
        raise Failed(
            f"{finding.code}: {finding}",
            hint="this is not what was written and signed: keep your profile, and ask who can write to the database",
        ) from finding
    if context.name and summary.newest is not None and not authority_key:
        invocation.profile_file().remember_checkpoint(context.name, summary.newest)
    _emit_summary(invocation, summary, agreed, reading)


@audit.command("export", example="fleetctl audit export > audit.jsonl")
@click.option("--after", type=click.IntRange(0), default=0, show_default=True, help="Start after this position.")
@click.option("--follow", "-f", is_flag=True, help="Go on with new rows until Ctrl-C.")
@click.pass_obj
def export(invocation: Invocation, after: int, follow: bool) -> None:
    """Write rows and signed checkpoints as JSON Lines, each with its type, with all that an independent check needs."""
    from fleet.v1 import admin_pb2
    from fleet_server.cli.views import to_json

    request = admin_pb2.ExportAuditRequest(after=after, follow=follow)
    with invocation.connect() as admin:
        for change in _rows(admin, request):
            for entry in change.entries:
                invocation.emit_json_line({"type": "row", **to_json(entry)})
            for checkpoint in change.checkpoints:
                invocation.emit_json_line({"type": "checkpoint", **to_json(checkpoint)})


def _rows(admin: Admin, request: admin_pb2.ExportAuditRequest) -> Iterator[admin_pb2.ExportAuditResponse]:
    """What `request` asks for; with follow, on through a restart of the server, no row twice."""
    if not request.follow:
        yield from admin.stream(admin.stub.ExportAudit, request)
        return
    for change in admin.follow(admin.stub.ExportAudit, lambda: request):
        yield change
        if change.entries:
            request.last, request.after = 0, change.entries[-1].position


def _pins(authority_key: str | None, cluster: str | None, context: Context) -> tuple[bytes, str]:
    pinned, cluster_id = context.authority_key, cluster or context.cluster_id
    if authority_key is not None:
        try:
            pinned = bytes.fromhex(authority_key)
        except ValueError:
            pinned = b""
        if len(pinned) != 32:
            raise click.BadParameter("64 hexadecimal digits", param_hint="--authority-key")
    if not pinned or not cluster_id:
        raise BadProfile(
            "no authority is pinned to verify against",
            hint="run `fleetctl login`, or give --authority-key and --cluster from a source other than this server",
        )
    return pinned, cluster_id


def _verifier(invocation: Invocation, admin: Admin, pinned: bytes, cluster_id: str) -> ChainVerifier:
    from fleet.audit_chain import ChainVerifier
    from fleet.envelope import key_id
    from fleet_server.cli.authority_chain import followed

    keys = followed(invocation, admin, authority_key=pinned, cluster_id=cluster_id)
    return ChainVerifier(
        cluster_id=cluster_id,
        authority_keys={key_id(key): key for key in keys},
        remembered=admin.context.checkpoint,
    )


def _emit_summary(
    invocation: Invocation, summary: ChainSummary, agreed: CrossCheckSummary, reading: AuditReading
) -> None:
    from fleet_server.cli.views import moment, moment_text

    newest, alarms, nodes = summary.newest, reading.alarms, reading.signatures
    if invocation.wants_json:
        invocation.emit_json(
            {
                "verified": True,
                "rows": summary.rows,
                "writers": summary.writers,
                "checkpoints": summary.checkpoints,
                "newest_checkpoint": newest.number if newest else None,
                "newest_checkpoint_sha256": newest.sha256.hex() if newest else None,
                "newest_checkpoint_at": moment(summary.newest_at_ms),
                "uncovered_rows": summary.uncovered_rows,
                "alarms": alarms,
                "taken_unvouched": reading.taken,
                "node_fingerprints": dict(nodes.fingerprints),
                "rows_not_signed_by_nodes": nodes.unsigned_rows,
                "other_node_keys": list(nodes.replaced),
                "agreed_commands": agreed.commands,
                "awaited_commands": agreed.awaited,
                "left_out_commands": agreed.left_out,
                "lost_commands": agreed.lost,
                "broken_nodes": list(agreed.broken),
                "later_chains": [asdict(chain) for chain in agreed.chains],
            }
        )
        return
    signed = f"{newest.number} of {moment_text(summary.newest_at_ms)}" if newest else "none yet"
    invocation.emit_fields(
        [
            ("audit", Styled("verified: nothing was changed, removed, reordered or cut off", "green")),
            ("rows", f"{summary.rows} by {summary.writers} writers"),
            ("checkpoints", f"{summary.checkpoints}, the newest is {signed}"),
            ("not signed yet", f"{summary.uncovered_rows} rows after the newest checkpoint"),
            ("nodes", f"{len(nodes.fingerprints)} signed their chains, but for the newest {nodes.unsigned_rows} rows"),
            *[("other keys", Styled(text, "yellow")) for text in nodes.replaced],
            ("commands", _agreed_text(agreed)),
            *[("later chain", _chain_text(chain)) for chain in agreed.chains],
            *[("taken", Styled(f"{text}: on a person's word (database.restored)", "yellow")) for text in reading.taken],
            *([("alarms", Styled(_alarm_text(alarms), "red"))] if alarms else []),
            *([("broken nodes", Styled(_broken_text(agreed), "red"))] if agreed.broken else []),
        ]
    )


def _agreed_text(agreed: CrossCheckSummary) -> str:
    text = f"{agreed.commands} told alike by server and nodes from issue to end, {agreed.awaited} not told by both yet"
    if agreed.left_out:
        text += f", {agreed.left_out} left out by nodes that said so"
    return f"{text}, {agreed.lost} lost with adopted machines or a restored database" if agreed.lost else text


def _chain_text(chain: LaterChain) -> str:
    text = f"{chain.chain} of {chain.node_id} ({chain.reason}) continues row {chain.number} of chain {chain.continues}"
    return (
        f"{text}; {counted(chain.beyond, 'row')} behind that the adopted machine does not have"
        if chain.beyond
        else text
    )


def _alarm_text(alarms: int) -> str:
    rows = counted(alarms, "row")
    return f"{rows} audit.tampered: the server found the audit changed around it; see `fleetctl audit tail`"


def _broken_text(agreed: CrossCheckSummary) -> str:
    return f"{', '.join(agreed.broken)}: rows that did not continue their chain were refused; see `fleetctl nodes show`"


def _shown_rows(entries: Iterable[admin_pb2.AuditEntry], names: NodeNames) -> list[list[Cell]]:
    from fleet_server.cli.views import moment_text

    told = [(entry, entry.actor, entry.subject, _detail(entry)[:_READ_CELLS]) for entry in entries]
    names.learn(text for _, *texts in told for text in texts)
    return [
        [
            moment_text(entry.at_ms),
            Styled(entry.kind, bold=True),
            names.told_by_name(actor),
            names.told_by_name(subject) or "-",
            entry.writer,
            str(entry.number),
            excerpt(names.told_by_name(detail), _DETAIL_CELLS),
        ]
        for entry, actor, subject, detail in told
    ]


def _detail(entry: admin_pb2.AuditEntry) -> str:
    from fleet_server.cli.route_views import decisions_text
    from fleet_server.cli.views import output_text

    return (entry.kind == "route.decided" and decisions_text(entry.detail)) or output_text(entry.detail)
