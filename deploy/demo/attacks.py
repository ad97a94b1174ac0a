"""Steps 6 and 7: the server in the wrong hands with every key it has, and a hand in its database."""

import asyncio
import json
import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

from deploy.demo.admin import AdminClient
from deploy.demo.installation import NODES, Installation
from deploy.demo.people import ACTION
from deploy.demo.programs import WAIT_S
from deploy.demo.runlog import read_runs
from deploy.demo.stage import Stage
from deploy.demo.stolen import steal_trust
from fleet.envelope import Domain, Signer
from fleet.v1 import admin_pb2, command_pb2, trust_pb2
from tests.fakes.rogue import RogueGateway, RogueStream, command, tampered

_VICTIM, _OTHER = NODES[0], NODES[1]
_NOOP = "simulated.noop"
_LONG_ID = re.compile(r"\b((?:nd_|c-)?[0-9a-z]{8})[0-9a-z]{8,}\b")
_COLUMNS = "node_id, seq, command_id, issue_id, spec_no, not_after_ms, mac, state"


def wrong_hands(stage: Stage, here: Installation, admin: AdminClient) -> None:
    """A node comes to a gateway that holds the installation's own secrets, and is told wrong things."""
    nodes = admin.nodes()
    trust = steal_trust(here.data, admin.cluster_id())
    stage.say("A second gateway takes the server's TLS key, authority key and command key; the node is sent there.")
    stage.check(here.stop_node(_VICTIM) == 0, f"{_VICTIM} ended in order")
    attack = asyncio.run(_attack(here, RogueGateway(trust), nodes[_OTHER].node_id))
    stage.table(
        ("the gateway sends", "the node answers", "in the node's own words"),
        [(what, answer, _LONG_ID.sub(r"\1…", detail)) for what, answer, detail in attack.rows],
        whole=("the node answers",),
    )
    for text, held in attack.verdicts:
        stage.check(held, text)
    runs = read_runs(here.run_log(_VICTIM))
    stage.check(runs.starts[attack.genuine.hex()] == 1, "the run log agrees: what was sent three times ran once")
    stage.check(not any(runs.starts[one.hex()] for one in attack.refused), "and nothing that was refused ever started")
    here.stop_node(_VICTIM)
    _go_home(stage, here, admin, attack.last_seq)


def forged_row(stage: Stage, here: Installation, admin: AdminClient) -> None:
    """Rows of commands written into the database around the server, one of them with a genuine row's own MAC."""
    issued = admin.issue(_OTHER, admin_pb2.CommandSpec(action=_NOOP)).issued[0]
    here.wait(lambda: admin.state(issued.command_id) == "SUCCEEDED", "a genuine command to copy")
    forged = {os.urandom(16): "a genuine row copied, its MAC too", os.urandom(16): "a row with a MAC made up"}
    stage.say(f"straight into {here.shown(here.database)}: INSERT INTO commands ({_COLUMNS}) …")
    stage.say("and UPDATE command_runs, which leads the server to what is open: it comes upon them at once.")
    with closing(sqlite3.connect(here.database, timeout=10)) as database, database:
        row = "SELECT node_id, seq + ?, ?, issue_id, spec_no, not_after_ms, {}, 1 FROM commands WHERE command_id = ?"
        for ahead, (command_id, mac) in enumerate(zip(forged, ("mac", "randomblob(32)"), strict=True), start=1):
            insert = f"INSERT INTO commands ({_COLUMNS}) {row.format(mac)}"
            database.execute(insert, (ahead, command_id, issued.command_id))
        reopen = (
            "UPDATE command_runs SET count = count + ?, is_open = 1"
            " WHERE (issue_id, node_id) = (SELECT issue_id, node_id FROM commands WHERE command_id = ?)"
        )
        database.execute(reopen, (len(forged), issued.command_id))
    here.wait(lambda: all(admin.state(each) == "QUARANTINED" for each in forged), "the forged rows to be set aside")
    views = {command_id: here.fleetctl("commands", "show", command_id.hex()) for command_id in forged}
    stage.table(
        ("written into the database", "command", "seq", "state", "signed by", "sent"),
        [
            (
                what,
                each.hex()[:8],
                views[each]["monotonic_seq"],
                views[each]["state"],
                views[each]["key_id"] or "nobody",
                views[each]["sent_at"] or "never",
            )
            for each, what in forged.items()
        ],
        right=("seq",),
        whole=("command", "state", "signed by", "sent"),
    )
    stage.check(
        all(not view["key_id"] and not view["sent_at"] for view in views.values()), "neither was ever signed or sent"
    )
    audited = {
        json.loads(row["detail"])["seq"]
        for row in here.fleetctl_lines("audit", "tail", "--lines", "200")
        if row["kind"] == "command.quarantined"
    }
    seqs = sorted(view["monotonic_seq"] for view in views.values())
    stage.check(audited >= set(seqs), f"the audit has command.quarantined for seq {' and '.join(map(str, seqs))}")
    runs = read_runs(here.run_log(_OTHER))
    stage.check(not any(runs.starts[each.hex()] for each in forged), f"{_OTHER} ran neither")
    after = admin.issue(_OTHER, admin_pb2.CommandSpec(action=_NOOP)).issued[0]
    here.wait(lambda: admin.state(after.command_id) == "SUCCEEDED", "a genuine command after them")
    ran = read_runs(here.run_log(_OTHER)).starts[after.command_id.hex()]
    stage.check(ran == 1, f"a genuine command issued after them got seq {after.monotonic_seq} and ran")


@dataclass(slots=True)
class _Attack:
    """What was tried and how the node answered."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    verdicts: list[tuple[str, bool]] = field(default_factory=list)
    refused: list[bytes] = field(default_factory=list)
    genuine: bytes = b""
    last_seq: int = 0

    def note(self, what: str, wanted: str, answer: str, detail: str, order: command_pb2.Command) -> None:
        """One attempt that must be refused as `wanted`."""
        self.rows.append((what, answer, detail))
        self.verdicts.append((f"{what}: {wanted}", answer == wanted))
        self.refused.append(order.command_id)


async def _attack(here: Installation, rogue: RogueGateway, other_node_id: str) -> _Attack:
    attack = _Attack()
    async with rogue:
        here.start_node(_VICTIM, {"FLEET_NODE_ENDPOINTS": rogue.endpoint})
        stream = await rogue.wait_stream(1, WAIT_S)
        captured = await _genuine_and_replayed(stream, attack)
        await _without_people(stream, attack)
        for what, reason, send in _WRONGS:
            order = command(_NOOP, stream.sent_seq + 1)
            send(stream, order, other_node_id)
            answer = await stream.wait_control("statement_refused")
            attack.note(what, reason, answer.reason, answer.detail, order)
            stream.sent_seq = answer.last_accepted_seq
        conflict = command(_NOOP, stream.sent_seq)
        stream.send_statement([conflict], prev_seq=stream.sent_seq - 1)
        answer = await stream.wait_control("command_refused")
        attack.note("another command under a seq that was used", "SEQ_CONFLICT", answer.reason, answer.detail, conflict)
        stream.end()
        later = await rogue.wait_stream(2, WAIT_S)
        later.send_signed(captured)
        answer = await later.wait_control("statement_refused")
        attack.rows.append(("the captured command, on the node's next stream", answer.reason, answer.detail))
        attack.verdicts.append(("replayed on a later stream: WRONG_STREAM", answer.reason == "WRONG_STREAM"))
        attack.last_seq = later.hello.last_accepted_seq
    return attack


async def _genuine_and_replayed(stream: RogueStream, attack: _Attack) -> trust_pb2.Signed:
    """First something true, so that what follows is refused for what is wrong with it and for nothing else."""
    order = command(_NOOP, stream.sent_seq + 1)
    attack.genuine = order.command_id
    captured = stream.send_statement([order])
    report = await stream.wait_report(order)
    state = command_pb2.CommandState.Name(report.state).removeprefix("COMMAND_STATE_")
    attack.rows.append(
        ("a new command, signed for this node and stream", state, f"seq {order.monotonic_seq}, for comparison")
    )
    attack.verdicts.append(("the keys are the real ones: a new command does run", state == "SUCCEEDED"))
    stream.send_signed(captured)
    stream.send_signed(captured)
    # Statements are taken in order: once this one is refused, the replays before it have been judged.
    stream.send_statement([command(_NOOP, order.monotonic_seq + 1)], node_id="nobody")
    await stream.wait_control("statement_refused")
    stream.sent_seq = order.monotonic_seq
    reported = {again.finished_at_ms for again in stream.reports(order) if again.state == report.state}
    attack.rows.append(
        ("the very same bytes, twice more", "its first result", "seq was accepted before: nothing runs again")
    )
    attack.verdicts.append(("replayed on the same stream: nothing runs again", reported == {report.finished_at_ms}))
    return captured


async def _without_people(stream: RogueStream, attack: _Attack) -> None:
    """The keys of the server sign for this node and stream; people did not."""
    order = command(ACTION, stream.sent_seq + 1, arguments=b'{"program": "kernel"}')
    stream.send_statement([order])
    report = await stream.wait_report(order)
    stream.sent_seq = order.monotonic_seq
    attack.note("a protected action that no person signed", "INTENT_MISSING", report.reason, report.error, order)


def _tampered(stream: RogueStream, order: command_pb2.Command, _: str) -> None:
    true = stream.trust.command_key.sign(Domain.COMMAND, stream.statement([order]).SerializeToString())

    def change(statement: command_pb2.CommandStatement) -> None:
        statement.commands[0].action = "exec.run"
        statement.commands[0].arguments = b'{"program": "kernel"}'

    stream.send_signed(tampered(true, change))


def _for_another_node(stream: RogueStream, order: command_pb2.Command, other_node_id: str) -> None:
    stream.send_statement([order], node_id=other_node_id)


def _for_another_cluster(stream: RogueStream, order: command_pb2.Command, _: str) -> None:
    stream.send_statement([order], cluster_id="c-another")


def _by_another_key(stream: RogueStream, order: command_pb2.Command, _: str) -> None:
    stream.send_statement([order], signer=Signer.generate())


def _by_the_authority(stream: RogueStream, order: command_pb2.Command, _: str) -> None:
    stream.send_statement([order], signer=stream.trust.authority)


def _after_a_gap(stream: RogueStream, order: command_pb2.Command, _: str) -> None:
    ahead = order.monotonic_seq + 1
    stream.send_statement([command(_NOOP, ahead + 1, command_id=order.command_id)], prev_seq=ahead)


_WRONGS: tuple[tuple[str, str, Callable[[RogueStream, command_pb2.Command, str], None]], ...] = (
    ("a command changed after it was signed", "BAD_SIGNATURE", _tampered),
    (f"a command signed for {_OTHER}", "WRONG_NODE", _for_another_node),
    ("a command for another cluster", "WRONG_CLUSTER", _for_another_cluster),
    ("a command under a key that nobody certified", "UNKNOWN_KEY", _by_another_key),
    ("a command under the authority's key", "UNKNOWN_KEY", _by_the_authority),
    ("a command after one that was withheld", "GAP", _after_a_gap),
)


def _go_home(stage: Stage, here: Installation, admin: AdminClient, last_seq: int) -> None:
    here.start_node(_VICTIM)
    here.wait(lambda: admin.nodes()[_VICTIM].state == "QUARANTINED", f"{_VICTIM} to be set aside")
    set_aside = admin.nodes()[_VICTIM].state == "QUARANTINED"
    stage.check(set_aside, "its own server finds that it was elsewhere: the ratchet is not the one that it handed on")
    adopt = ["nodes", "adopt", _VICTIM, "--reason", "it was lured away, and is back"]
    stage.command("fleetctl", *adopt)
    here.fleetctl(*adopt, "--yes")
    here.stop_node(_VICTIM)
    here.start_node(_VICTIM)  # it would ask again by itself, after a while
    here.wait(lambda: _VICTIM in admin.online(), f"{_VICTIM} back at its own server")
    issued = admin.issue(_VICTIM, admin_pb2.CommandSpec(action=_NOOP)).issued[0]
    here.wait(lambda: admin.state(issued.command_id) == "SUCCEEDED", "a command after coming home")
    stage.check(
        issued.monotonic_seq > last_seq,
        f"back at its own server: seq {last_seq} was used elsewhere, so the next one is {issued.monotonic_seq}",
    )
