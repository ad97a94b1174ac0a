"""A machine that went back to any moment and was let in again: what the server holds of its node is what was written,
each row once, whichever rows either side had seen of the other."""

import asyncio
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.audit_chain import ChainVerifier
from fleet.node_audit import MAX_ROWS_PER_FRAME, Begun, NodeAuditKind, encode_detail, writer_of
from fleet.v1 import gateway_pb2, trust_pb2
from fleet_node.commands import audit_rows
from fleet_node.commands.journal_file import ensure_journal
from fleet_node.commands.store import Batch, JournalStore
from fleet_server.audit.rules import AuditRow
from fleet_server.database.engine import Database
from tests.fakes.clock import MockClock
from tests.fakes.databases import sqlite_database
from tests.unit.fleet_server.audit.test_node_audit import NODE, Desk

COUNTS = st.integers(0, MAX_ROWS_PER_FRAME + 10)


class Machine:
    """A journal, and what its sender knows of the server."""

    def __init__(self, path: Path) -> None:
        self.journal = JournalStore(path, NODE)
        self._known, self._number = False, 0

    def write(self, name: str, count: int) -> None:
        """Rows that are in no other place, of two commits."""
        for half in (range(count // 2), range(count // 2, count)):
            events = [audit_rows.event(NodeAuditKind.DRAIN_ENDED, 5, {"row": f"{name}-{number}"}) for number in half]
            if events:
                self.journal.apply([Batch(audit=events)], 0)

    def let_in(self, chain: int) -> None:
        """A floor names another chain."""
        floor = audit_rows.floor(trust_pb2.FloorStatement(audit_chain=chain), 0, 6)
        self.journal.apply([Batch(audit=[floor])], 0)

    async def send(self, desk: Desk, *, opened: int, frames: int, heard: bool = True) -> None:
        """Some frames; of the last one the answer may get lost."""
        sent_back = False
        for left in reversed(range(frames)):
            audit = self.journal.audit
            number = self._number if self._known else audit.acked_number
            rows = self.journal.next_audit(number if self._known else 0, number)
            if not rows:
                return
            ack = await desk.give(rows, chain=audit.chain, opened=opened, sent_back=sent_back)
            if not left and not heard:
                return
            sent, sent_back = rows[-1].number, ack.number < rows[-1].number
            if audit.answered(ack, sent, 7):
                self._known, sent_back = False, False
            else:
                assert ack.paused == "", "between machines that were let in nothing is broken"
                self._known, self._number = True, min(ack.number, sent)


async def everything(desk: Desk) -> dict[int, list[AuditRow]]:
    pages = [page async for page in desk.audit.export()]
    rows = [row for page in pages for row in page.rows]
    return {chain: [row for row in rows if row.writer == writer_of(NODE, chain)] for chain in range(2)}


def contents(rows: Sequence[AuditRow | gateway_pb2.AuditRow]) -> list[bytes]:
    return [bytes(row.detail) for row in rows if row.kind == NodeAuditKind.DRAIN_ENDED]


@given(
    before=COUNTS,
    sent_before=st.integers(0, 3),
    heard=st.booleans(),
    afterwards=COUNTS,
    sent_afterwards=st.integers(0, 4),
    meanwhile=COUNTS,
    later=COUNTS,
)
@settings(deadline=None, max_examples=20)
def test_no_row_is_lost_and_none_comes_twice(
    before: int, sent_before: int, heard: bool, afterwards: int, sent_afterwards: int, meanwhile: int, later: int
) -> None:
    async def play(folder: Path, desk: Desk) -> None:
        ensure_journal(folder / "first.db", NODE)
        first = Machine(folder / "first.db")
        first.write("before", before)
        await first.send(desk, opened=0, frames=sent_before, heard=heard)
        first.journal.copy_to(folder / "image.db")
        first.write("afterwards", afterwards)
        await first.send(desk, opened=0, frames=sent_afterwards)
        first.journal.close()
        held = await everything(desk)

        second = Machine(folder / "image.db")
        second.write("meanwhile", meanwhile)
        second.let_in(1)
        await second.send(desk, opened=1, frames=20)
        second.write("later", later)
        second.let_in(1)
        await second.send(desk, opened=1, frames=20)
        second.journal.close()
        now = await everything(desk)

        assert now[0][: len(held[0])] == held[0], "what was stored stays"
        begun = Begun.parse(now[1][0].detail)
        assert (begun.chain, begun.number <= len(now[0])) == (0, True)
        told = Counter(contents(now[0]) + contents(now[1]))
        assert max(told.values(), default=1) == 1
        written = (("before", before), ("meanwhile", meanwhile), ("later", later))
        assert {
            encode_detail({"row": f"{name}-{number}"}) for name, count in written for number in range(count)
        } <= set(told)
        verifier = ChainVerifier(cluster_id="c-1", authority_keys={})
        for row in now[0] + now[1]:
            verifier.add_row(row)
        verifier.finish()

    async def run(folder: Path) -> None:
        database = Database(sqlite_database(folder / "fleet.db"), readers=1)
        database.start()
        try:
            await play(folder, Desk(database, MockClock()))
        finally:
            await database.close()

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(run(Path(name)))
