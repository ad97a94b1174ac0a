"""A commit that was interrupted may stand all the same, and show at any moment after: what is behind it is tried again,
and nobody takes the replica's own rows for a forgery."""

from collections.abc import Sequence

import pytest

from fleet.errors import Reason, Refusal
from fleet_server.audit import store
from fleet_server.audit.heads import Heads, OwnChain
from fleet_server.audit.rules import AuditRow, Entry, Head
from fleet_server.database.engine import Connection, Database
from fleet_server.database.writer import Transaction
from tests.unit.fleet_server.audit.test_audit import SECRETS


class Interrupted(Exception):
    """The connection was lost while it committed."""


def entry(subject: str) -> Entry:
    return Entry(at_ms=1, kind="node.labelled", actor="ada", subject=subject, detail=b"{}")


def told_of(tx: Transaction, writer: str, why: str) -> Entry:
    raise AssertionError(f"{writer}: {why}")


async def test_what_follows_an_interrupted_commit_that_shows_late_comes_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = Heads(SECRETS.row_mac("audit_heads"))
    chain = OwnChain("r-1", ends, told_of, lambda conn, writer: None, lambda conn: None)
    insert = store.insert_rows
    written: list[AuditRow] = []

    def interrupted(tx: Transaction) -> None:
        chain.seal(tx, [entry("a"), entry("b")])
        raise Interrupted

    def noted(conn: Connection, rows: Sequence[AuditRow]) -> None:
        written.extend(rows)
        insert(conn, rows)

    monkeypatch.setattr(store, "insert_rows", noted)
    with pytest.raises(Interrupted):
        await database.write(interrupted)

    def behind_those_that_show_now(conn: Connection, rows: Sequence[AuditRow]) -> None:
        insert(conn, written)
        insert(conn, rows)

    # The look at the chain's end found nothing of it; the rows come behind that look.
    monkeypatch.setattr(store, "insert_rows", behind_those_that_show_now)
    with pytest.raises(Refusal) as refused:
        await database.write(lambda tx: chain.seal(tx, [entry("c")]))
    assert refused.value.reason is Reason.UNAVAILABLE

    monkeypatch.setattr(store, "insert_rows", insert)
    stands = Head("r-1", written[-1].number, written[-1].hash)
    await database.write(lambda tx: ends.put(tx.conn, written, stands))
    await database.write(lambda tx: chain.seal(tx, [entry("c")]))
    assert chain.name == "r-1"
    assert (await database.read(lambda conn: ends.read(conn, "r-1"))).number == 3
