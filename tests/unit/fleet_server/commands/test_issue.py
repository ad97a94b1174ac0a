"""What an operator may order, and what is refused, as a whole or node by node."""

import asyncio
import json
import threading
from collections.abc import Mapping

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2
from fleet.v1 import command_pb2 as wire
from fleet_server.commands import issuing, rules
from fleet_server.database.engine import Connection, Database
from fleet_server.nodes.record import Taken
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.commands.room import Room, open_room, order


async def refusal_of(room: Room, request: admin_pb2.IssueCommandsRequest) -> Refusal:
    with pytest.raises(Refusal) as refused:
        await room.commands.issue("alice", request)
    assert await room.query("SELECT COUNT(*) FROM command_issues") == [(0,)]
    return refused.value


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (order("n1", count=0), Reason.INVALID_ARGUMENT),
        (order("n1", count=1025), Reason.INVALID_ARGUMENT),
        (order("n1", ttl_s=30 * 24 * 3600 + 1), Reason.INVALID_ARGUMENT),
        (order("n1", idempotency_key="k" * 129), Reason.INVALID_ARGUMENT),
        (order("n1", action=""), Reason.INVALID_ARGUMENT),
        (order("n1", arguments=b"[]"), Reason.ARGUMENTS_INVALID),
        (order("n1", arguments=b"{"), Reason.ARGUMENTS_INVALID),
        (order("n1", arguments=b"\xff"), Reason.ARGUMENTS_INVALID),
        (order("n1", arguments=b'{"level": NaN}'), Reason.ARGUMENTS_INVALID),
        (order("n1", arguments=b'{"level": 1, "level": 2}'), Reason.ARGUMENTS_INVALID),
        (order("n1", arguments=b'{"a":' * 20_000 + b"1" + b"}" * 20_000), Reason.ARGUMENTS_TOO_LARGE),
        (order("n1", arguments=b'{"a":' * 9000 + b"1" + b"}" * 9000), Reason.ARGUMENTS_INVALID),
        (order("n1", arguments=b'{"tags": ["' + b"x" * 65_536 + b'"]}'), Reason.ARGUMENTS_TOO_LARGE),
        (order(), Reason.NO_TARGETS),
        (order("nobody"), Reason.NO_TARGETS),
        (order("x*"), Reason.NO_TARGETS),
    ],
)
async def test_refused_as_a_whole(room: Room, request_: admin_pb2.IssueCommandsRequest, reason: Reason) -> None:
    await room.add_node("n1")
    assert (await refusal_of(room, request_)).reason == reason


async def test_one_node_is_refused_while_others_go_on(room: Room) -> None:
    for name in ("active", "suspended", "revoked"):
        await room.add_node(name)
    await room.add_node("other", actions=["host.get"])
    await room.add_node("strict", schema={"type": "object", "properties": {"level": {"maximum": 0}}})
    await room.add_node("silent", actions=())
    await room.nodes.set_state("alice", ["suspended"], "SUSPENDED", "repair")
    await room.nodes.set_state("alice", ["revoked"], "REVOKED", "stolen")
    answer = await room.commands.issue("alice", order("*"))
    assert [each.node_name for each in answer.issued] == ["active"]
    reasons = {each.node_name: each.reason for each in answer.refused}
    assert reasons == {
        "suspended": "SUSPENDED",
        "revoked": "REVOKED",
        "other": "UNKNOWN_ACTION",
        "strict": "ARGUMENTS_INVALID",
        "silent": "UNKNOWN_ACTION",
    }
    details = {each.node_name: each.detail for each in answer.refused}
    assert "/level" in details["strict"]
    assert "host.get" in details["other"]
    assert (await room.audited("command.issued"))[0]["actions"] == {"host.set": 1}


@pytest.mark.parametrize(
    "schema",
    [b"{", b'{"$ref": "http://127.0.0.1:9/x"}', b'{"$ref": "file:///etc/passwd"}', b'{"type": "nonsense"}', b"1"],
)
async def test_a_schema_of_no_use_refuses_its_node_only(room: Room, schema: bytes) -> None:
    await room.add_node("good")
    await room.add_node("strange", schema=schema)
    answer = await room.commands.issue("alice", order("*"))
    assert [each.node_name for each in answer.issued] == ["good"]
    assert [each.reason for each in answer.refused] == ["ARGUMENTS_INVALID"]


async def test_the_place_in_nested_arguments_is_named(room: Room) -> None:
    await room.add_node("n1")
    answer = await room.commands.issue("alice", order("n1", arguments=b'{"tags": ["a", 5]}'))
    assert "/tags/1" in answer.refused[0].detail


async def test_which_command_it_is_is_said_only_where_there_are_several(room: Room) -> None:
    await room.add_node("n1")
    odd = b'{"level": "high"}'
    alone = await room.commands.issue("alice", order("n1", arguments=odd))
    assert alone.refused[0].detail.startswith("the arguments of host.set are refused at /level: ")
    several = order("n1", count=2)
    several.commands[1].arguments = odd
    answer = await room.commands.issue("alice", several)
    assert answer.refused[0].detail.startswith("the arguments of host.set (command 2 of 2) are refused at /level: ")


@pytest.mark.parametrize(
    ("count", "words"), [(1, "the arguments of the command are no JSON object"), (3, "the arguments of command 1 are")]
)
async def test_arguments_that_no_node_could_read_are_told_the_same_way(room: Room, count: int, words: str) -> None:
    assert words in (await refusal_of(room, order("n1", count=count, arguments=b"[]"))).detail


async def test_every_node_that_is_refused_stands_in_the_audit(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuing, "_AUDITED_REFUSALS", 2)
    for number in range(7):
        await room.add_node(f"n{number}", actions=["host.set"] if number == 0 else ["other.action"])
    answer = await room.commands.issue("alice", order("*"))
    assert len(answer.refused) == 6
    audited = [node for detail in await room.audited("command.issued") for node in detail["refused"]]
    assert len(audited) == len(set(audited)) == 6


async def test_a_full_queue_is_refused_until_something_ended(database: Database, clock: MockClock) -> None:
    room = await open_room(database, clock, max_open_per_node=3)
    node = await room.add_node("n1")
    await room.commands.issue("alice", order("n1", count=2))
    answer = await room.commands.issue("alice", order("n1", count=2))
    assert [each.reason for each in answer.refused] == ["QUEUE_FULL"]
    await room.commands.cancel("alice", issue_id=(await room.views_of_node("n1"))[0].issue_id)
    assert (await room.commands.issue("alice", order("n1", count=2))).issued_count == 2
    assert room.commands.open_counts(None, [node.node_id]) == {node.node_id: 2}  # type: ignore[arg-type]


async def test_the_same_key_answers_the_first_result(room: Room) -> None:
    await room.add_node("n1")
    await room.add_node("n2", actions=["host.get"])
    request = order("*", count=2, idempotency_key="k1")
    first = await room.commands.issue("alice", request)
    again = await room.commands.issue("alice", request)
    assert again.repeated_request
    again.repeated_request = False
    assert again == first
    other_actor = await room.commands.issue("bob", request)
    assert other_actor.issue_id != first.issue_id


async def test_the_same_key_with_another_body_is_a_conflict(room: Room) -> None:
    await room.add_node("n1")
    await room.commands.issue("alice", order("n1", idempotency_key="k1"))
    with pytest.raises(Refusal) as refused:
        await room.commands.issue("alice", order("n1", count=2, idempotency_key="k1"))
    assert refused.value.reason == Reason.IDEMPOTENCY_CONFLICT
    assert await room.query("SELECT COUNT(*) FROM commands") == [(1,)]


async def test_seqs_are_dense_over_issues(room: Room) -> None:
    node = await room.add_node("n1")
    for count in (3, 1, 2):
        await room.commands.issue("alice", order("n1", count=count))
    found = await room.query("SELECT seq FROM commands WHERE node_id = ? ORDER BY seq", node.node_id)
    assert [seq for (seq,) in found] == [1, 2, 3, 4, 5, 6]


async def test_waking_follows_the_commit(room: Room) -> None:
    node = await room.add_node("n1")
    woken: list[str] = []
    room.wakeup.subscribe(f"node:{node.node_id}", lambda: woken.append("node"))
    await room.commands.issue("alice", order("n1"))
    assert woken == ["node"]


async def test_a_row_where_the_next_command_belongs_does_not_stop_issuing(room: Room) -> None:
    node = await room.add_node("n1")
    await room.tamper(
        "INSERT INTO commands (node_id, seq, command_id, issue_id, spec_no, not_after_ms, mac, state)"
        " VALUES (?, 1, ?, 'x', 0, 1, ?, 1)",
        node.node_id,
        b"i" * 16,
        b"m" * 32,
    )
    answer = await room.commands.issue("alice", order("n1"))
    assert [each.monotonic_seq for each in answer.issued] == [1]
    await room.open_stream(node.node_id)
    claimed = await room.claim(node.node_id)
    assert [each.command_id for each in claimed] == [answer.issued[0].command_id]
    assert len(await room.audited("command.quarantined")) == 1


async def test_a_counter_that_was_set_back_moves_past_true_commands(room: Room) -> None:
    node = await room.add_node("n1")
    first = await room.commands.issue("alice", order("n1", count=3))
    await room.tamper("UPDATE nodes SET last_seq = 1 WHERE node_id = ?", node.node_id)
    second = await room.commands.issue("alice", order("n1", count=2))
    seqs = [each.monotonic_seq for each in (*first.issued, *second.issued)]
    assert seqs == [1, 2, 3, 4, 5]
    assert {view.state for view in await room.views(first.issue_id)} == {wire.COMMAND_STATE_QUEUED}


async def test_arguments_travel_as_the_bytes_that_were_ordered(room: Room) -> None:
    node = await room.add_node("n1")
    raw = b'{ "level":1 ,"tags":["\xc3\xa9"]}'
    assert json.loads(raw)
    await room.commands.issue("alice", order("n1", arguments=raw))
    await room.open_stream(node.node_id)
    assert (await room.claim(node.node_id))[0].terms.arguments == raw


async def test_orders_to_one_node_each_take_the_rows_of_their_nodes_in_one_order(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever came first: another replica that is given the same orders in another order waits, but in no circle."""
    ids = [(await room.add_node(name)).node_id for name in ("n1", "n2", "n3")]
    begun, goes_on = threading.Event(), threading.Event()

    def occupy(_: object) -> None:
        begun.set()
        assert goes_on.wait(10)

    taken: list[str] = []
    take_seqs = room.nodes.take_seqs

    def noted(conn: Connection, counts: Mapping[str, int]) -> dict[str, Taken]:
        taken.extend(counts)
        return take_seqs(conn, counts)

    monkeypatch.setattr(room.nodes, "take_seqs", noted)
    occupied = room.database.write_nowait(occupy)
    assert await asyncio.to_thread(begun.wait, 10)
    issued = [asyncio.ensure_future(room.commands.issue("alice", order(name))) for name in ("n3", "n2", "n1")]
    await asyncio.sleep(0)
    assert room.database.writer.depth() == 3
    goes_on.set()
    await asyncio.gather(occupied, *issued)
    assert taken == ids


def test_an_order_to_many_comes_before_those_to_one() -> None:
    ranks = [rules.rank(rules.check_request(order(*patterns))) for patterns in (["n*"], ["a", "b"], ["site=x"], ["n1"])]
    assert ranks == ["", "", "", "n1"]
