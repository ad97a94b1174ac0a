"""What a replica issued for its own streams is not read again, and is believed only as far as the rows still say so."""

from collections.abc import Sequence

import pytest

from fleet.v1 import command_pb2 as wire
from fleet_server.commands import rules
from fleet_server.commands.authority import Authority
from fleet_server.commands.in_hand import InHand
from fleet_server.commands.runs import Run
from fleet_server.commands.store import NewRow
from tests.unit.fleet_server.commands.room import BusyLane, Room, order, report

KEY_ID = b"k" * 16


async def busy_node(room: Room, *names: str) -> str:
    """Nodes with a stream on this replica; the id of the first."""
    ids = []
    for name in names:
        ids.append((await room.add_node(name)).node_id)
        await room.open_stream(ids[-1])
    room.commands.hand_over_to(lambda node_id: BusyLane() if node_id in ids else None)
    return ids[0]


async def test_what_is_in_hand_is_claimed_as_it_was_ordered_whatever_the_rows_say(room: Room) -> None:
    node_id = await busy_node(room, "n1")
    issued = await room.commands.issue("alice", order("n1", count=3))
    await room.tamper("UPDATE command_issues SET actor = 'mallory'")
    await room.tamper("UPDATE commands SET spec_no = 0, command_id = ? WHERE seq = 2", b"x" * 16)
    claimed = await room.claim(node_id, limit=2, key_id=KEY_ID) + await room.claim(node_id, after_seq=2)
    assert [(each.seq, each.command_id) for each in claimed] == [
        (each.monotonic_seq, each.command_id) for each in issued.issued
    ]
    assert {(each.terms.actor, each.terms.action) for each in claimed} == {("alice", "host.set")}
    rows = await room.query("SELECT seq, state, key_id, sent_at_ms > 0 FROM commands ORDER BY seq")
    assert [(seq, state, key_id, bool(sent)) for seq, state, key_id, sent in rows] == [
        (1, rules.SENT, KEY_ID, True),
        (2, rules.SENT, KEY_ID, True),
        (3, rules.SENT, None, True),
    ]


async def test_a_node_without_a_stream_here_has_its_rows_read_and_verified(room: Room) -> None:
    node_id = await busy_node(room, "n1")
    room.commands.hand_over_to({}.get)
    await room.commands.issue("alice", order("n1"))
    await room.tamper("UPDATE commands SET not_after_ms = not_after_ms + 1")
    assert await room.claim(node_id) == []
    assert await room.state(node_id, 1) == rules.QUARANTINED


async def test_a_newer_stream_has_its_rows_read_and_verified(room: Room) -> None:
    node_id = await busy_node(room, "n1")
    await room.commands.issue("alice", order("n1", count=2))
    await room.open_stream(node_id)
    await room.tamper("UPDATE commands SET mac = ? WHERE seq = 1", b"m" * 32)
    assert [each.seq for each in await room.claim(node_id)] == [2]
    assert await room.state(node_id, 1) == rules.QUARANTINED


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ("UPDATE commands SET state = 8 WHERE seq = 2", [1, 3]),
        ("UPDATE commands SET state = 11 WHERE seq = 1", [2, 3]),
        ("DELETE FROM commands WHERE seq = 3", [1, 2]),
        ("UPDATE commands SET state = 7", []),
    ],
)
async def test_rows_that_changed_under_it_are_read_anew(room: Room, change: str, left: list[int]) -> None:
    node_id = await busy_node(room, "n1", "n2")
    await room.commands.issue("alice", order("n1", count=3))
    await room.tamper(change)
    assert [each.seq for each in await room.claim(node_id)] == left


async def test_what_another_replica_cancelled_is_not_claimed(room: Room) -> None:
    node_id = await busy_node(room, "n1")
    issued = await room.commands.issue("alice", order("n1", count=3))
    await room.another_replica().cancel("bob", [issued.issued[0].command_id])
    assert [each.seq for each in await room.claim(node_id)] == [2, 3]


async def test_a_cancel_here_takes_what_it_cancelled_out_of_hand(room: Room) -> None:
    node_id = await busy_node(room, "n1")
    issued = await room.commands.issue("alice", order("n1", count=3))
    await room.commands.cancel("bob", [issued.issued[1].command_id])
    assert [each.seq for each in await room.claim(node_id)] == [1, 3]


async def test_what_expired_in_hand_is_not_claimed(room: Room) -> None:
    node_id = await busy_node(room, "n1")
    await room.commands.issue("alice", order("n1", ttl_s=5))
    await room.commands.issue("alice", order("n1", ttl_s=60))
    await room.clock.advance(6)  # type: ignore[attr-defined]
    assert [each.seq for each in await room.claim(node_id)] == [2]
    assert await room.state(node_id, 1) == rules.EXPIRED


async def test_claims_that_begin_lower_or_higher_leave_nothing_out(room: Room) -> None:
    node_id = await busy_node(room, "n1")
    for _ in range(3):
        await room.commands.issue("alice", order("n1", count=2))
    assert [each.seq for each in await room.claim(node_id, after_seq=3, limit=2)] == [4, 5]
    assert [each.seq for each in await room.claim(node_id, after_seq=0)] == [1, 2, 3, 4, 5, 6]


async def test_another_replicas_commands_in_between_are_claimed_in_their_turn(room: Room) -> None:
    node_id = await busy_node(room, "n1")
    await room.commands.issue("alice", order("n1", count=2))
    await room.another_replica().issue("bob", order("n1"))
    await room.commands.issue("alice", order("n1", count=2))
    claimed = await room.claim(node_id, limit=4)
    assert [(each.seq, each.terms.actor) for each in claimed] == [(1, "alice"), (2, "alice"), (3, "bob"), (4, "alice")]
    assert [each.seq for each in await room.claim(node_id, after_seq=4)] == [5]


async def test_a_result_of_what_is_in_hand_is_recorded_once(room: Room) -> None:
    node_id = await busy_node(room, "n1")
    await room.commands.issue("alice", order("n1", count=2))
    first, second = await room.claim(node_id)
    done = report(first, wire.COMMAND_STATE_SUCCEEDED, output=b'{"n": 1}', accepted_at_ms=5)
    await room.commands.record_reports(node_id, [done, report(second, wire.COMMAND_STATE_RUNNING)])
    await room.commands.record_reports(node_id, [done, report(first, wire.COMMAND_STATE_FAILED)])
    await room.commands.record_reports(node_id, [report(second, wire.COMMAND_STATE_FAILED, reason="LIMIT")])
    rows = await room.query("SELECT state, output, accepted_at_ms, reason FROM commands ORDER BY seq")
    assert [(state, bytes(output or b""), reason) for state, output, _, reason in rows] == [
        (rules.SUCCEEDED, b'{"n": 1}', ""),
        (wire.COMMAND_STATE_FAILED, b"", "LIMIT"),
    ]
    assert rows[0][2] == 5
    assert room.commands.open_count(node_id) == 0


async def test_a_result_meets_a_cancel_that_another_replica_was_asked_for(room: Room) -> None:
    node_id = await busy_node(room, "n1")
    await room.commands.issue("alice", order("n1"))
    [command] = await room.claim(node_id)
    await room.another_replica().cancel("bob", [command.command_id])
    await room.commands.record_reports(node_id, [report(command, wire.COMMAND_STATE_SUCCEEDED)])
    assert await room.query("SELECT state, cancel_requested_by FROM commands") == [(rules.SUCCEEDED, "bob")]


async def test_a_result_of_what_was_declared_unknown_elsewhere_is_known_after_all(room: Room) -> None:
    node_id = await busy_node(room, "n1")
    await room.commands.issue("alice", order("n1"))
    [command] = await room.claim(node_id)
    await room.tamper("UPDATE commands SET state = 10, reason = ?", rules.NO_ANSWER)
    await room.commands.record_reports(node_id, [report(command, wire.COMMAND_STATE_SUCCEEDED)])
    assert await room.state(node_id, 1) == rules.SUCCEEDED
    [audited] = await room.audited("command.reported")
    assert audited["known_after_all"] == [[node_id, 1, rules.NO_ANSWER, "SUCCEEDED"]]


async def test_a_stranger_to_a_command_in_hand_moves_nothing(room: Room) -> None:
    node_id = await busy_node(room, "n1", "n2")
    await room.commands.issue("alice", order("*"))
    [own] = await room.claim(node_id)
    liar = (await room.nodes.get("n2")).node_id
    await room.claim(liar)
    await room.commands.record_reports(liar, [report(own, wire.COMMAND_STATE_SUCCEEDED)])
    assert [await room.state(each, 1) for each in (node_id, liar)] == [rules.SENT, rules.SENT]
    await room.commands.record_reports(node_id, [report(own, wire.COMMAND_STATE_SUCCEEDED)])
    assert await room.state(node_id, 1) == rules.SUCCEEDED


def run_of(node_id: str, first: int, count: int, epoch: int = 1) -> Run:
    """Commands of a node that expire at 1000 ms."""
    rows = [
        NewRow(node_id, seq, seq.to_bytes(16, "big"), "i1", 0, 1000, b"", rules.QUEUED, None, 0)
        for seq in range(first, first + count)
    ]
    return Run(node_id, epoch, Authority("i1", "alice", 1, [("noop", b"")], b"", 1), rows)


def seqs(runs: Sequence[Run]) -> list[int]:
    return [row.seq for run in runs for row in run.rows]


def test_the_bound_holds_over_all_nodes_and_room_comes_back() -> None:
    hands = InHand(max_held=5)
    hands.put_queued(run_of("a", 1, 3))
    hands.put_queued(run_of("b", 1, 3))  # does not fit
    assert seqs(hands.next_queued("b", 1, 0, 32, 0)) == []
    hands.put_sent(run_of("a", 4, 2), None, 1)
    hands.answered("a", 4)
    assert seqs(hands.next_queued("a", 1, 2, 32, 0)) == [3]
    hands.forget(["a", "nobody"])
    hands.put_queued(run_of("b", 4, 5))
    assert seqs(hands.next_queued("b", 1, 3, 2, 0)) == [4, 5]
    assert seqs(hands.next_queued("b", 1, 3, 2, 2000)) == []
    hands.next_queued("b", 1, 8, 1, 0)  # all of them were sent
    hands.put_queued(run_of("a", 1, 5))
    assert seqs(hands.next_queued("a", 1, 0, 32, 0)) == [1, 2, 3, 4, 5]


def test_only_the_newest_stream_with_a_lane_is_held() -> None:
    hands = InHand()
    hands.put_queued(run_of("a", 1, 2, epoch=7))
    hands.put_queued(run_of("a", 3, 2, epoch=6))
    assert seqs(hands.next_queued("a", 7, 0, 32, 0)) == [1, 2]
    assert seqs(hands.next_queued("a", 6, 0, 32, 0)) == []
    hands.put_queued(run_of("a", 5, 1, epoch=8))
    assert seqs(hands.next_queued("a", 8, 4, 32, 0)) == [5]
    hands.retain(lambda node_id: node_id != "a")
    assert seqs(hands.next_queued("a", 8, 4, 32, 0)) == []
