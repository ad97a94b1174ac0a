"""What rows about commands say: each command once, in rows that the server takes."""

import json

from hypothesis import example, given
from hypothesis import strategies as st

from fleet.node_audit import MAX_DETAIL_BYTES
from fleet_node.commands import audit_rows
from tests.unit.fleet_node.commands.audit_reader import read_audit
from tests.unit.fleet_node.commands.node import NODE, TestNode
from tests.unit.fleet_node.commands.test_store import entry


async def test_names_that_a_server_makes_up_neither_break_the_chain_nor_a_terminal(node: TestNode) -> None:
    commands = [node.command("\x01" * 200) for _ in range(32)]
    for number, command in enumerate(commands):
        command.actor = chr(1 + number % 30) * 300
    await node.give(*commands)
    await node.wait_reported(commands[-1], "REJECTED")
    audit = await node.journal.query(lambda store: read_audit(store, NODE))

    assert set(audit.accepted) == set(range(1, 33))
    assert max(len(row.detail) for row in audit.rows) <= MAX_DETAIL_BYTES
    for alike in audit.details("command.accepted"):
        assert all(one["action"].isprintable() and one["actor"].isprintable() for one in alike["commands"])


@given(st.lists(st.tuples(st.text(max_size=128), st.text(max_size=256)), max_size=300))
@example([("\x01" * 128, f"{number:c}" * 256) for number in range(1, 32)])
@example([("\U0001f600" * 128, f"{number:c}" * 256) for number in range(0x1F300, 0x1F600)])
def test_whatever_names_commands_have_each_stands_once_in_rows_that_fit(names: list[tuple[str, str]]) -> None:
    entries = [entry(seq) for seq in range(1, len(names) + 1)]
    for one, (action, actor) in zip(entries, names, strict=True):
        one.action, one.actor = action, actor
    details = [row.detail for row in audit_rows.accepted(entries)]

    assert all(len(detail) <= MAX_DETAIL_BYTES for detail in details)
    told = [seq for detail in details for one in json.loads(detail)["commands"] for seq in one["seqs"]]
    assert sorted(told) == list(range(1, len(names) + 1))
