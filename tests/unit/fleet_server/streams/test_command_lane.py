"""The command lane of a stream: windows, chaining of prev_seq, resending after a refusal."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from fleet.envelope import Domain, Signer
from fleet.metrics import Registry
from fleet.v1 import command_pb2, gateway_pb2
from fleet_server.commands.delivery import Resumption
from fleet_server.observability.metrics import CommandMetrics
from fleet_server.streams import rules
from fleet_server.streams.command_lane import CommandLane
from tests.fakes.clock import MockClock


@dataclass
class Pending:
    """A pending command as the commands room hands it out."""

    seq: int
    arguments: bytes = b"{}"

    @property
    def command_id(self) -> bytes:
        return self.seq.to_bytes(16, "big")

    @property
    def size_bytes(self) -> int:
        return len(self.arguments)

    def encoded(self) -> bytes:
        command = command_pb2.Command(command_id=self.command_id, monotonic_seq=self.seq, arguments=self.arguments)
        return command_pb2.CommandStatement(commands=[command]).SerializeToString()


@dataclass
class Room:
    """A commands room that holds a queue."""

    queue: list[Pending] = field(default_factory=list)
    start: int = 0
    may_wait: bool = True
    claims: list[tuple[int, int]] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    while_claiming: Callable[[], object] = int

    async def reconcile(self, node_id: str, epoch: int, last_accepted_seq: int, **_: object) -> Resumption:
        return Resumption(self.start, self.may_wait)

    async def claim_pending(
        self, node_id: str, epoch: int, *, after_seq: int, limit: int, key_id: bytes, **_: object
    ) -> list[Pending]:
        self.claims.append((after_seq, limit))
        self.keys.append(key_id)
        self.while_claiming()
        return [command for command in self.queue if command.seq > after_seq][:limit]

    async def pending_cancels(self, node_id: str, epoch: int) -> list[object]:
        return []

    def open_count(self, node_id: str) -> int:
        return len(self.queue)


@dataclass
class Bench:
    """A lane with everything around it faked but trust's signature."""

    lane: CommandLane
    room: Room
    sent: list[command_pb2.CommandStatement]
    frames: list[gateway_pb2.ServerControl]
    clock: MockClock
    signers: list[Signer]

    async def settle(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0)

    def refuse(self, index: int, reason: str, last_accepted: int) -> None:
        digest = hashlib.sha256(self.frames[index].commands.signed.statement).digest()
        self.lane.statement_refused(
            command_pb2.StatementRefused(statement_sha256=digest, reason=reason, last_accepted_seq=last_accepted)
        )


def _bench(clock: MockClock, seqs: Sequence[int], *, max_in_flight: int = 64, start: int = 0) -> Bench:
    signers = [Signer.generate()]
    trust = SimpleNamespace(
        cluster_id="c",
        command_key_id=lambda site: signers[-1].key_id,
        sign_command_statement=lambda domain, statement, site: signers[-1].sign(Domain(domain), statement),
    )
    claim = SimpleNamespace(
        node=SimpleNamespace(node_id="n", site=""),
        epoch=3,
        binding=b"b" * 32,
        takeover_of="",
        hello_body=SimpleNamespace(max_in_flight=max_in_flight, last_accepted_seq=start),
    )
    room = Room([Pending(seq) for seq in seqs], start)
    sent: list[command_pb2.CommandStatement] = []
    frames: list[gateway_pb2.ServerControl] = []

    def send(frame: gateway_pb2.ServerControl, size_bytes: int) -> None:
        assert len(frame.commands.signed.statement) == size_bytes
        frames.append(frame)
        sent.append(command_pb2.CommandStatement.FromString(frame.commands.signed.statement))

    lane = CommandLane(
        claim=claim,
        commands=room,
        trust=trust,
        clock=clock,
        metrics=CommandMetrics(Registry()),
        send=send,
        failed=pytest.fail,
    )
    return Bench(lane, room, sent, frames, clock, signers)


async def test_statements_chain_and_hold_at_most_32(clock: MockClock) -> None:
    bench = _bench(clock, range(1, 81), max_in_flight=100)
    bench.lane.wake()
    await bench.settle()
    assert [len(statement.commands) for statement in bench.sent] == [32, 32, 16]
    assert [statement.prev_seq for statement in bench.sent] == [0, 32, 64]
    assert {statement.stream_binding for statement in bench.sent} == {b"b" * 32}


async def test_a_stream_on_which_nothing_waits_asks_for_nothing_until_it_is_woken(clock: MockClock) -> None:
    bench = _bench(clock, [8], start=7)
    bench.room.may_wait = False
    bench.lane.wake()
    await bench.settle()
    assert (bench.room.claims, bench.sent) == ([], [])
    bench.lane.wake()
    await bench.settle()
    assert [statement.prev_seq for statement in bench.sent] == [7]


async def test_no_more_than_max_in_flight_until_the_node_answers(clock: MockClock) -> None:
    bench = _bench(clock, range(1, 31), max_in_flight=10)
    bench.lane.wake()
    await bench.settle()
    assert sum(len(statement.commands) for statement in bench.sent) == 10
    bench.lane.answered([1, 2, 3, 4, 5, 6])
    await bench.settle()
    assert len(bench.sent) == 1  # more waits than the window holds: it opens wider with the next answer
    bench.lane.answered([7, 8, 9, 10])
    await bench.settle()
    assert [len(statement.commands) for statement in bench.sent] == [10, 10]


async def test_few_that_wait_need_no_more_than_half_a_window(clock: MockClock) -> None:
    bench = _bench(clock, range(1, 13), max_in_flight=10)
    bench.lane.wake()
    await bench.settle()
    bench.room.queue = bench.room.queue[4:]  # 1 to 4 have ended, 5 to 10 are on their way, 11 and 12 wait
    bench.lane.answered([1, 2, 3, 4])
    await bench.settle()
    assert len(bench.sent) == 1  # less than half of the window is open: not worth a signature
    bench.room.queue = bench.room.queue[1:]
    bench.lane.answered([5])
    await bench.settle()
    assert [len(statement.commands) for statement in bench.sent] == [10, 2]


async def test_a_deaf_peer_is_sent_a_bounded_number_of_bytes(clock: MockClock) -> None:
    bench = _bench(clock, range(1, 101), max_in_flight=100)
    for command in bench.room.queue:
        command.arguments = bytes(60_000)
    bench.lane.wake()
    await bench.settle()
    sent_bytes = sum(len(c.arguments) for statement in bench.sent for c in statement.commands)
    assert sent_bytes <= rules.MAX_UNACCEPTED_BYTES + 32 * 60_000


async def test_a_refused_statement_is_sent_again_from_what_the_node_has(clock: MockClock) -> None:
    bench = _bench(clock, range(1, 41), max_in_flight=64)
    bench.lane.wake()
    await bench.settle()
    bench.refuse(0, "UNKNOWN_KEY", last_accepted=0)
    bench.refuse(1, "GAP", last_accepted=0)  # an echo of the first one: already handled
    await bench.settle()
    assert [statement.commands[0].monotonic_seq for statement in bench.sent] == [1, 33, 1, 33]


async def test_resending_is_bounded(clock: MockClock) -> None:
    bench = _bench(clock, [1])
    bench.lane.wake()
    await bench.settle()
    for _ in range(50):
        bench.refuse(-1, "BAD_SIGNATURE", last_accepted=0)
        await bench.settle()
    assert len(bench.sent) == 1 + rules.MAX_RESENDS


async def test_a_full_disk_on_the_node_is_waited_out(clock: MockClock) -> None:
    bench = _bench(clock, [1])
    bench.lane.wake()
    await bench.settle()
    bench.refuse(0, "JOURNAL_UNAVAILABLE", last_accepted=0)
    bench.lane.wake()
    await bench.settle()
    assert len(bench.sent) == 1
    await clock.advance(5.0)
    bench.lane.wake()
    await bench.settle()
    assert len(bench.sent) == 2


async def test_a_drained_node_is_sent_nothing_until_it_is_resumed(clock: MockClock) -> None:
    bench = _bench(clock, [1, 2])
    bench.lane.hold(True)
    bench.lane.wake()
    await bench.settle()
    assert bench.sent == []
    bench.lane.hold(False)
    await bench.settle()
    assert [command.monotonic_seq for command in bench.sent[0].commands] == [1, 2]


async def test_an_overtaken_stream_is_sent_nothing_more(clock: MockClock) -> None:
    bench = _bench(clock, [1])
    bench.lane.stop()
    bench.lane.hold(False)
    bench.lane.wake()
    await bench.settle()
    assert bench.sent == []


async def test_a_lane_that_waits_sends_what_it_is_handed_at_once(clock: MockClock) -> None:
    bench = _bench(clock, [1])
    bench.lane.wake()
    await bench.settle()
    bench.lane.answered([1])
    assert bench.lane.key_for(3, 2, 2) is not None
    bench.lane.take([Pending(2), Pending(3)], bench.signers[-1].key_id)  # type: ignore[list-item]
    assert [(statement.prev_seq, len(statement.commands)) for statement in bench.sent] == [(0, 1), (1, 2)]
    assert bench.lane.key_for(3, 4, 1) is not None


async def test_a_lane_takes_only_what_comes_next_and_has_room(clock: MockClock) -> None:
    bench = _bench(clock, [1], max_in_flight=4)
    assert bench.lane.key_for(3, 1, 1) is None  # where it starts is not known before it asked
    bench.lane.wake()
    assert bench.lane.key_for(3, 2, 1) is None  # it is claiming
    await bench.settle()
    assert bench.lane.key_for(3, 2, 3) is not None
    assert bench.lane.key_for(3, 2, 4) is None  # one is unanswered and four fit
    assert bench.lane.key_for(3, 3, 1) is None  # something lies in between
    assert bench.lane.key_for(2, 2, 1) is None  # an older stream's
    bench.lane.hold(True)
    assert bench.lane.key_for(3, 2, 1) is None


async def test_a_lane_that_moved_on_claims_what_it_was_handed(clock: MockClock) -> None:
    bench = _bench(clock, [1])
    bench.lane.wake()
    await bench.settle()
    bench.room.queue += [Pending(2), Pending(3)]
    bench.lane.take([Pending(3)], bench.signers[-1].key_id)  # type: ignore[list-item]
    await bench.settle()
    assert [[each.monotonic_seq for each in statement.commands] for statement in bench.sent] == [[1], [2, 3]]


async def test_a_held_lane_keeps_what_it_was_handed_until_it_is_let_go(clock: MockClock) -> None:
    bench = _bench(clock, [1])
    bench.lane.wake()
    await bench.settle()
    bench.lane.hold(True)
    bench.room.queue.append(Pending(2))
    bench.lane.take([Pending(2)], bench.signers[-1].key_id)  # type: ignore[list-item]
    await bench.settle()
    assert len(bench.sent) == 1
    bench.lane.hold(False)
    await bench.settle()
    assert [[each.monotonic_seq for each in statement.commands] for statement in bench.sent] == [[1], [2]]


async def test_commands_are_marked_with_the_key_that_signs_them_also_when_keys_rotate_meanwhile(
    clock: MockClock,
) -> None:
    bench = _bench(clock, [1, 2])
    rotated = Signer.generate()

    def rotate() -> None:
        if bench.signers[-1] is not rotated:
            bench.signers.append(rotated)

    bench.room.while_claiming = rotate
    bench.lane.wake()
    await bench.settle()
    assert bench.room.keys == [bench.signers[0].key_id, rotated.key_id]
    (frame,) = bench.frames
    assert frame.commands.signed.signatures[0].key_id == rotated.key_id

    bench.room.queue.append(Pending(3))
    bench.lane.take([Pending(3)], bench.signers[0].key_id)  # type: ignore[list-item]
    assert len(bench.frames) == 1, "it was marked with a key that signs no more: it is claimed again"
    await bench.settle()
    assert bench.room.keys[-1] == bench.frames[-1].commands.signed.signatures[0].key_id == rotated.key_id


async def test_a_stream_outlives_any_number_of_revoked_keys(clock: MockClock) -> None:
    """Each makes what is in flight worthless once; a node that takes what it is sent again counts as sound."""
    bench = _bench(clock, range(1, 21))
    bench.room.queue = []
    for seq in range(1, 21):
        bench.room.queue.append(Pending(seq))
        bench.lane.wake()
        await bench.settle()
        bench.refuse(-1, "KEY_REVOKED", last_accepted=seq - 1)
        await bench.settle()
        assert bench.sent[-1].commands[0].monotonic_seq == seq
        bench.lane.answered([seq])
    assert len(bench.sent) == 40
    assert not bench.lane.held
