"""Nodes' own chains on the server: what is stored, what is found, what is paused, on a real database."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from fleet.audit_chain import FIRST_PREVIOUS_HASH
from fleet.envelope import Domain
from fleet.errors import Reason, Refusal
from fleet.metrics import Registry
from fleet.node_audit import (
    MAX_DETAIL_BYTES,
    MAX_ROWS_PER_FRAME,
    Begun,
    BegunBecause,
    NodeAuditKind,
    node_row_hash,
)
from fleet.v1 import gateway_pb2, trust_pb2
from fleet_server.audit import node_rules
from fleet_server.audit.node_audit import NodeAudit
from fleet_server.audit.node_rules import DAY_MS
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Database
from fleet_server.database.wakeup import Wakeup
from fleet_server.observability.metrics import ServerMetrics
from tests.fakes.audit_export import verify_export
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.audit.test_audit import CLUSTER, SECRETS, authority, begin, sign

NODE = "n-1"


class Chain:
    """A node's chain as it writes it."""

    def __init__(self, node_id: str = NODE, number: int = 0) -> None:
        self._node_id = node_id
        self._number = number
        self._previous = FIRST_PREVIOUS_HASH
        self.rows: list[gateway_pb2.AuditRow] = []

    def grow(self, count: int = 1, *, kind: str = "drain.ordered", detail: bytes = b"{}") -> "Chain":
        for _ in range(count):
            row = gateway_pb2.AuditRow(number=len(self.rows) + 1, at_ms=5, kind=kind, detail=detail)
            self._previous = row.hash = node_row_hash(self._node_id, self._previous, row, chain=self._number)
            self.rows.append(row)
        return self

    def begin(self, older: "Chain", number: int, *, of: int = 0, sha256: bytes | None = None) -> "Chain":
        """The first row: this continues `older` behind its row `number`."""
        agreed = (older.rows[number - 1].hash if number else b"") if sha256 is None else sha256
        begun = Begun(of, number, agreed, len(older.rows), older.rows[-1].hash, BegunBecause.ADOPTED)
        return self.grow(kind=NodeAuditKind.CHAIN_BEGUN, detail=begun.detail())

    def fork(self, number: int) -> "Chain":
        """Another chain that has the first rows in common."""
        other = Chain(self._node_id, self._number)
        other.rows = self.rows[:number]
        other._previous = other.rows[-1].hash if other.rows else FIRST_PREVIOUS_HASH
        return other


class Desk:
    """The room, and what it wrote into the server's own chain."""

    def __init__(self, database: Database, clock: MockClock) -> None:
        wakeup = Wakeup()
        self._database = database
        self.clock = clock
        self.metrics = ServerMetrics(Registry()).audit
        self.audit = AuditService(
            database=database,
            clock=clock,
            wakeup=wakeup,
            writer="r-1",
            row_mac=SECRETS.row_mac,
            metrics=self.metrics,
        )
        self.newest_epoch = 1
        self.room = NodeAudit(
            database, clock, wakeup, self.audit, self.metrics, refuse_stale=lambda _, __, epoch: self.refuse(epoch)
        )

    def refuse(self, epoch: int) -> Refusal | None:
        return None if epoch == self.newest_epoch else Refusal(Reason.SUPERSEDED, "a newer one")

    async def take(self, rows: Sequence[gateway_pb2.AuditRow], *, sent_back: bool = False) -> tuple[int, str]:
        ack = await self.give(rows, sent_back=sent_back)
        return ack.number, ack.paused

    async def give(
        self, rows: Sequence[gateway_pb2.AuditRow], *, chain: int = 0, opened: int = 0, sent_back: bool = False
    ) -> gateway_pb2.AuditAck:
        frame = gateway_pb2.AuditRows(rows=rows, chain=chain)
        return await self.room.take(NODE, 1, frame, opened_chain=opened, sent_back=sent_back)

    async def told(self, kind: str) -> list[dict[str, object]]:
        pages = [page async for page in self.audit.export()]
        return [json.loads(row.detail) for page in pages for row in page.rows if row.kind == kind]

    async def rows(self, text: str) -> list[tuple[Any, ...]]:
        return await self._database.read(lambda conn: [tuple(row) for row in conn.exec_driver_sql(text)])

    async def verified_rows(self) -> int:
        await self.audit.checkpoint(sign, CLUSTER)
        summary = await verify_export(self.audit, CLUSTER, {authority.key_id: authority.public_key})
        assert summary.uncovered_rows == 0
        return summary.rows


@pytest.fixture
async def desk(database: Database, clock: MockClock) -> Desk:
    made = Desk(database, clock)
    await begin(database, made.audit)
    return made


async def test_rows_are_stored_once_and_stand_under_the_checkpoints(desk: Desk) -> None:
    chain = Chain().grow(5)
    assert await desk.take(chain.rows[:3]) == (3, "")
    assert await desk.take(chain.rows[:3]) == (3, "")
    assert await desk.take(chain.rows[1:]) == (5, "")
    assert await desk.take([]) == (5, "")

    assert await desk.verified_rows() == 5
    assert desk.metrics.node_rows.value == 5
    number, standing = await desk.room.standing(NODE)
    assert (number, standing.last_at_ms, standing.finding) == (5, desk.clock.now_ms(), "")


async def test_every_lie_is_found_named_and_stored_nowhere(desk: Desk) -> None:
    chain = Chain().grow(3)
    await desk.take(chain.rows)
    ahead = Chain().grow(5).rows[4:]
    forked = chain.fork(1).grow(3, kind="drain.ended").rows
    unlinked = gateway_pb2.AuditRow()
    unlinked.CopyFrom(Chain().grow(4).rows[3])
    unlinked.detail = b'{"another":1}'
    elsewhere = Chain("n-2").grow(4).rows[3:]
    odd = chain.fork(3).grow(kind="a\nb").rows[3:]
    large = chain.fork(3).grow(detail=b"x" * (MAX_DETAIL_BYTES + 1)).rows[3:]
    many = Chain().grow(MAX_ROWS_PER_FRAME + 1).rows
    lies = [
        ("REMOVED: row 5 follows row 3", ahead, 3),
        ("CHANGED: row 2 came again and is another one", forked, 1),
        ("BROKEN_LINK: row 4 was not hashed behind row 3 as it is stored", [unlinked], 3),
        ("BROKEN_LINK: row 4 was not hashed behind row 3 as it is stored", elsewhere, 3),
        ("MALFORMED: row 4 is no audit row", odd, 3),
        ("MALFORMED: row 4 is no audit row", large, 3),
        (f"MALFORMED: {MAX_ROWS_PER_FRAME + 1} rows in one frame", many, 0),
    ]
    for finding, rows, both_hold in lies:
        assert await desk.take(rows, sent_back=True) == (both_hold, "CHAIN_BROKEN"), finding
        assert (await desk.room.standing(NODE))[1].finding == finding

    told = [f"{one['finding']}: {one['detail']}" for one in await desk.told("node.audit_broken")]
    assert told == list(dict.fromkeys(finding for finding, _, _ in lies))
    assert await desk.take(chain.grow().rows[3:]) == (4, ""), "what continues the chain is taken all the same"
    assert (await desk.room.standing(NODE))[1].finding, "what was found stays"
    assert await desk.verified_rows() == 4 + len(told)


async def test_rows_before_the_lie_are_kept(desk: Desk) -> None:
    chain = Chain().grow(4)
    chain.rows[3].hash = bytes(32)

    assert await desk.take(chain.rows) == (3, "CHAIN_BROKEN")


async def test_the_same_finding_is_told_once(desk: Desk) -> None:
    lie = Chain().grow(2).rows[1:]
    for _ in range(3):
        await desk.take(lie, sent_back=True)

    assert len(await desk.told("node.audit_broken")) == 1


async def test_a_gap_is_a_finding_only_when_the_node_knows_where_the_chain_ends(desk: Desk) -> None:
    chain = Chain().grow(4)
    await desk.take(chain.rows[:2])

    assert await desk.take(chain.rows[3:]) == (2, ""), "a restored database knows less than it acknowledged"
    assert await desk.take(chain.rows[2:], sent_back=True) == (4, "")
    assert await desk.told("node.audit_broken") == []


async def test_a_node_cannot_fill_the_database(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_rules, "MAX_ROWS_A_DAY", 4)
    chain = Chain().grow(6)
    assert await desk.take(chain.rows[:4]) == (4, "")

    ack = await desk.give(chain.rows[4:])

    assert (ack.number, ack.paused) == (4, "OVER_QUOTA")
    assert 0 < ack.retry_after_ms <= 3_600_000
    assert await desk.take(chain.rows[4:]) == (4, "OVER_QUOTA")
    assert await desk.told("node.audit_paused") == [{"bytes": 4 * (2 + 128), "rows": 4}]
    await desk.clock.advance(DAY_MS / 1000)
    assert await desk.take(chain.rows[4:]) == (6, "")


async def test_bytes_are_bounded_like_rows(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_rules, "MAX_BYTES_A_DAY", 1000)
    chain = Chain().grow(3, detail=b"x" * 300)

    assert await desk.take(chain.rows[:2]) == (2, "")
    assert await desk.take(chain.rows[2:]) == (2, "OVER_QUOTA")


async def test_checkpoints_name_the_chains_that_grew(desk: Desk) -> None:
    def sign(_: object, statement: bytes) -> trust_pb2.Signed:
        return authority.sign(Domain.AUDIT_CHECKPOINT, statement)

    await desk.room.take("n-1", 1, gateway_pb2.AuditRows(rows=Chain("n-1").grow().rows))
    await desk.room.take("n-2", 1, gateway_pb2.AuditRows(rows=Chain("n-2").grow().rows))
    await desk.audit.checkpoint(sign, CLUSTER)
    await desk.room.take("n-2", 1, gateway_pb2.AuditRows(rows=Chain("n-2").grow(2).rows))
    await desk.audit.checkpoint(sign, CLUSTER)
    assert not await desk.audit.checkpoint(sign, CLUSTER)

    signed = [one async for page in desk.audit.export() for one in page.checkpoints]
    named = [
        [(head.writer, head.number) for head in trust_pb2.AuditCheckpointStatement.FromString(one.statement).heads]
        for one in signed
    ]
    assert named == [[("node:n-1", 1), ("node:n-2", 1)], [("node:n-2", 2)]]


def said(ack: gateway_pb2.AuditAck) -> tuple[int, int, str]:
    return ack.chain, ack.number, ack.paused


async def test_a_forked_chain_is_told_where_it_forked_and_the_next_one_is_taken(desk: Desk) -> None:
    first = Chain().grow(5)
    await desk.give(first.rows)
    restored = first.fork(2).grow(4, kind="drain.ended")

    assert said(await desk.give(restored.rows[1:], opened=1)) == (0, 2, "CHAIN_ENDED")
    second = Chain(number=1).begin(restored, 2).grow(3)
    assert said(await desk.give(second.rows, chain=1, opened=1)) == (1, 4, "")

    number, standing = await desk.room.standing(NODE)
    assert (number, standing.chain, standing.finding) == (4, 1, "")
    assert await desk.told("node.audit_broken") == []
    assert await desk.verified_rows() == 9, "the older chain stays, and stands under the checkpoints with the newer"


async def test_the_right_machine_goes_on_with_its_older_chain_until_the_next_has_begun(desk: Desk) -> None:
    first = Chain().grow(3)
    await desk.give(first.rows[:1])

    assert said(await desk.give(first.rows[1:], opened=1)) == (0, 3, "")
    second = Chain(number=1).begin(first, 3).grow()
    assert said(await desk.give(second.rows, chain=1, opened=1)) == (1, 2, "")
    assert said(await desk.give(first.grow().rows[3:], opened=1)) == (0, 3, "CHAIN_ENDED")
    assert said(await desk.give(first.rows[:2], opened=1)) == (0, 3, ""), "what is known agrees"
    assert await desk.verified_rows() == 5


async def test_a_chain_that_nobody_opened_is_a_finding_and_history_stays(desk: Desk) -> None:
    first = Chain().grow(3)
    await desk.give(first.rows)

    ack = await desk.give(Chain(number=1).begin(first, 0).grow().rows, chain=1)

    assert said(ack) == (1, 0, "CHAIN_BROKEN")
    number, standing = await desk.room.standing(NODE)
    assert (number, standing.finding) == (3, "MALFORMED: chain 1 was not opened for this node")


async def test_a_fork_that_nobody_decided_about_stays_a_finding(desk: Desk) -> None:
    first = Chain().grow(3)
    await desk.give(first.rows)
    second = Chain(number=1).begin(first, 3)
    await desk.give(second.rows, chain=1, opened=1)

    lie = Chain(number=1).begin(first, 2).grow()

    assert said(await desk.give(lie.rows, chain=1, opened=1)) == (1, 0, "CHAIN_BROKEN")


async def test_a_chain_begins_with_a_row_that_the_server_holds(desk: Desk) -> None:
    first = Chain().grow(3)
    await desk.give(first.rows)
    for wrong in (
        Chain(number=1).grow(),
        Chain(number=1).begin(first, 3, sha256=b"x" * 32),
        Chain(number=1).begin(first.fork(3).grow(), 4),
        Chain(number=1).begin(first, 3, of=1),
        Chain(number=1).grow(kind="chain.begun"),
        Chain(number=1).grow(kind="chain.begun", detail=b"["),
    ):
        assert said(await desk.give(wrong.rows, chain=1, opened=1)) == (1, 0, "CHAIN_BROKEN")
    assert said(await desk.give(Chain(number=1).begin(first, 3).rows, chain=1, opened=1)) == (1, 1, "")


async def test_a_database_that_was_restored_has_lost_the_chain_that_the_node_writes(desk: Desk) -> None:
    """The node wrote chain 4 before; the database knows of none but the first, and opened 5."""
    lost = Chain(number=4).begin(Chain().grow(2), 2).grow(9)

    assert said(await desk.give(lost.rows[5:], chain=4, opened=5)) == (4, 0, "")
    assert said(await desk.give(lost.rows[3:], chain=4, opened=5, sent_back=True)) == (4, 0, "CHAIN_ENDED")
    fifth = Chain(number=5).begin(lost, 0, of=4).grow(4)
    assert said(await desk.give(fifth.rows, chain=5, opened=5)) == (5, 5, "")


@pytest.mark.parametrize(
    "edit", ["UPDATE audit_heads SET number = 2", "DELETE FROM audit_heads", "UPDATE audit_heads SET mac = hash"]
)
async def test_behind_a_head_that_was_changed_nothing_is_stored_and_nothing_acknowledged(
    desk: Desk, database: Database, edit: str
) -> None:
    chain = Chain().grow(3)
    await desk.take(chain.rows)
    await database.write(lambda tx: tx.conn.exec_driver_sql(f"{edit} WHERE writer = 'node:n-1'").rowcount)
    for _ in range(2):
        assert await desk.take(chain.grow().rows[3:]) == (0, "CHAIN_BROKEN")
    told = await desk.told("audit.tampered")
    assert [each["what"] for each in told] == ["head"]
    assert desk.metrics.tampered.labels("head").value == 1
