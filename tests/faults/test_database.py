"""Faults of the database: it is away, it went back in time, somebody wrote into it.

Must hold: while it is away streams stay up, issue is refused clearly, and delivery resumes; after a restore counters
rise at hello and nothing runs a second time; a row that the server did not write is quarantined and never signed.
"""

import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2, command_pb2
from fleet_server.database import engine, writer
from tests.fakes.proxy import Direction, FaultProxy
from tests.integration.clock import QuickClock
from tests.integration.handmade import HandmadeNode
from tests.integration.installation import Installation, assert_each_ran_once
from tests.integration.on_postgres import copied_installation
from tests.integration.waiting import eventually

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer

RUNNING = command_pb2.COMMAND_STATE_RUNNING
SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED
INTERRUPTED = command_pb2.COMMAND_STATE_INTERRUPTED
QUARANTINED = command_pb2.COMMAND_STATE_QUARANTINED


# -- away -------------------------------------------------------------------------------------------------------------
@pytest.fixture
async def line(postgres: "PostgresServer") -> AsyncIterator[FaultProxy]:
    """The way to PostgreSQL."""
    async with FaultProxy(postgres.socket_path) as proxy:
        yield proxy


@pytest.fixture
async def on_postgres(tmp_path: Path, postgres: "PostgresServer", line: FaultProxy) -> AsyncIterator[Installation]:
    """A running server whose database is PostgreSQL behind `line`; time runs ten times as fast."""
    async with copied_installation(postgres) as (template, name):
        url = SecretStr(postgres.url(name, address=("127.0.0.1", line.port)))
        async with Installation(
            tmp_path / "run", template, clock=QuickClock(speed=10), heartbeat_interval_s=4, database_url=url
        ) as running:
            yield running


@pytest.mark.parametrize("how", ["refused", "deaf"])
async def test_the_database_is_away_and_comes_back(
    on_postgres: Installation, line: FaultProxy, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "STALL_S", 0.6)
    monkeypatch.setattr(engine, "READ_TIMEOUT_S", 0.6)
    node = await on_postgres.add_node("n-1")
    before = await on_postgres.owner.run("n-1")
    working = await on_postgres.owner.issue("n-1", action="simulated.work", arguments={"latency_ms": 1500})
    await on_postgres.owner.wait_command(working.issued[0].command_id, lambda view: view.state == RUNNING)
    stream = node.link.stream_id

    if how == "refused":
        line.refuse()
        line.cut()
    else:
        line.deafen()
    began_s = on_postgres.clock.monotonic()
    refused = 0
    while on_postgres.clock.monotonic() - began_s < 30:
        with pytest.raises(Refusal) as refusal:
            await on_postgres.owner.issue("n-1", idempotency_key=f"away-{refused}")
        refused += 1
        assert refusal.value.reason in (Reason.UNAVAILABLE, Reason.OVERLOADED)
        assert "again" in refusal.value.detail or "database" in refusal.value.detail, refusal.value.detail
    assert refused
    assert node.link.stream_id == stream

    line.heal()

    (worked,) = await on_postgres.owner.outcomes(working.issue_id)
    assert worked.state == SUCCEEDED
    after = await eventually(lambda: on_postgres.owner.issue("n-1", idempotency_key="back"), "issuing works again")
    (view,) = await on_postgres.owner.outcomes(after.issue_id)
    assert view.state == SUCCEEDED
    assert node.link.stream_id == stream
    once = {before[0].command_id.hex(), worked.command_id.hex(), view.command_id.hex()}
    assert once <= set(node.runs())
    assert max(node.runs().values()) == 1


# -- back in time -----------------------------------------------------------------------------------------------------
async def copied(installation: Installation) -> Path:
    """A consistent copy of the database, as a backup makes one."""
    copy = installation.folder / "backup.db"
    with (
        contextlib.closing(sqlite3.connect(installation.database_file)) as source,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
    return copy


async def restored(installation: Installation, copy: Path, *, start: bool = True) -> None:
    """The server runs on the older copy, or may."""
    await installation.crash_server()
    for leftover in installation.data.glob("fleet.db-*"):
        leftover.unlink()
    shutil.copyfile(copy, installation.database_file)
    if start:
        await installation.start_server()


async def test_a_restored_server_never_issues_a_used_seq_again(installation: Installation) -> None:
    node = await installation.add_node("n-1")
    first = await installation.owner.run("n-1", count=2)
    copy = await copied(installation)
    lost = await installation.owner.run("n-1", count=5)

    await restored(installation, copy)
    await node.wait_live(streams=2)

    after = await installation.owner.run("n-1", count=2)
    assert [view.monotonic_seq for view in after] == [8, 9]
    assert {view.state for view in after} == {SUCCEEDED}
    assert_each_ran_once(node, [view.command_id for view in (*first, *lost, *after)])


async def test_a_seq_that_a_restored_server_gives_out_before_the_node_is_back_conflicts_loudly(
    installation: Installation,
) -> None:
    proxy = await installation.proxy()
    node = await installation.add_node("n-1", endpoints=(proxy.address,))
    first = await installation.owner.run("n-1")
    copy = await copied(installation)
    lost = await installation.owner.run("n-1")
    proxy.refuse()
    proxy.cut()

    await restored(installation, copy)
    again = await installation.owner.issue("n-1")
    assert again.issued[0].monotonic_seq == lost[0].monotonic_seq
    proxy.heal()

    (view,) = await installation.owner.outcomes(again.issue_id)
    assert (view.state, view.reason) == (INTERRUPTED, "SEQ_CONFLICT")
    assert "back in time" in view.error
    await installation.owner.wait_audit("command.refused", lambda detail: detail["reason"] == "SEQ_CONFLICT")
    after = await installation.owner.run("n-1")
    assert_each_ran_once(node, [view.command_id for view in (*first, *lost, *after)])


async def test_what_a_restored_server_forgot_the_result_of_is_asked_for_and_not_run_again(
    installation: Installation,
) -> None:
    proxy = await installation.proxy()
    node = await installation.add_node("n-1", endpoints=(proxy.address,))
    proxy.hold(Direction.DOWN)
    issued = await installation.owner.issue("n-1", count=3)
    await installation.owner.wait_command(
        issued.issued[2].command_id, lambda view: view.state == command_pb2.COMMAND_STATE_SENT
    )
    copy = await copied(installation)
    proxy.release()
    await installation.owner.outcomes(issued.issue_id)

    await restored(installation, copy)

    views = await installation.owner.outcomes(issued.issue_id)
    for view in views:
        assert (view.state, view.reason) in ((SUCCEEDED, ""), (INTERRUPTED, "FORGOTTEN"))
    assert_each_ran_once(node, [view.command_id for view in views])


async def test_a_restored_servers_bundles_rise_above_what_nodes_hold(installation: Installation) -> None:
    node = await installation.add_node("n-1")
    copy = await copied(installation)
    trust = installation.server.trust
    for port in (1, 2, 3):
        await trust.publish_bundle([installation.gateway, f"127.0.0.1:{port}"])
    newest = trust.bundle.version
    await installation.owner.wait_node("n-1", lambda view: view.bundle_version.number == newest[1])

    await restored(installation, copy)
    await node.wait_live(streams=2)

    view = await installation.owner.wait_node("n-1", lambda view: view.bundle_version.number > newest[1])
    assert (view.bundle_version.generation, view.bundle_version.number) == installation.server.trust.bundle.version
    (after,) = await installation.owner.run("n-1")
    assert after.state == SUCCEEDED


async def test_telemetry_goes_on_after_a_restore(installation: Installation) -> None:
    node = await installation.add_node("n-1", telemetry_interval_s=0.1, simulated={"series": 2})
    assert node.node is not None
    copy = await copied(installation)
    sent = node.node.telemetry.last_batch_seq
    await eventually(lambda: node.node and node.node.telemetry.last_batch_seq > sent + 5, "telemetry flows")

    await restored(installation, copy)

    async def latest_ms() -> int:
        request = admin_pb2.LatestTelemetryRequest(selector=admin_pb2.Selector(patterns=["*"]))
        answer = await installation.owner.ask("LatestTelemetry", request)
        return max((value.at_ms for value in answer.values), default=0)

    restored_at_ms = installation.clock.now_ms()

    async def fresh() -> bool:
        return await latest_ms() > restored_at_ms

    await eventually(fresh, "samples from after the restore are shown")


async def test_a_node_whose_journal_went_back_in_time_runs_nothing_twice(installation: Installation) -> None:
    """The other way round: the node's disk was restored from a copy."""
    node = await installation.add_node("n-1")
    await node.stop()
    shutil.copytree(node.folder.path, installation.folder / "older", ignore=shutil.ignore_patterns("*.sock"))
    await node.start()
    views = await installation.owner.run("n-1", count=3)
    working = await installation.owner.issue("n-1", action="simulated.work", arguments={"latency_ms": 60_000})
    await installation.owner.wait_command(working.issued[0].command_id, lambda view: view.state == RUNNING)
    await node.stop()
    for name in ("journal.db", "journal.db-wal", "journal.db-shm"):
        (node.folder.path / name).unlink(missing_ok=True)
        if (installation.folder / "older" / name).exists():
            shutil.copyfile(installation.folder / "older" / name, node.folder.path / name)
            (node.folder.path / name).chmod(0o600)

    await node.start()

    after = await installation.owner.run("n-1")
    assert after[0].state == SUCCEEDED
    ran = [*views, *after, *(await installation.owner.outcomes(working.issue_id))]
    assert_each_ran_once(node, [view.command_id for view in ran])


# -- written into -----------------------------------------------------------------------------------------------------
def write(installation: Installation, statement: str, *values: object) -> int:
    """Whoever holds the database writes."""
    with contextlib.closing(sqlite3.connect(installation.database_file)) as database:
        changed = database.execute(statement, values).rowcount
        database.commit()
    return changed


async def test_a_command_written_straight_into_the_database_is_quarantined_and_never_signed(
    installation: Installation,
) -> None:
    node = await installation.enroll("n-1")
    async with HandmadeNode(installation, node) as hand, hand.welcomed() as stream:
        (true,) = (await installation.owner.issue("n-1")).issued
        await stream.wait_statement()
        copy = (
            "INSERT INTO commands (node_id, seq, command_id, issue_id, spec_no, not_after_ms, mac, state)"
            " SELECT node_id, seq + 1, ?, issue_id, spec_no, not_after_ms, mac, 1 FROM commands WHERE seq = 1"
        )
        forged = b"forged-command-1"
        assert write(installation, copy, forged) == 1
        assert write(installation, "UPDATE nodes SET last_seq = 2") == 1

        (after,) = (await installation.owner.issue("n-1")).issued
        statement = await stream.wait_statement()

        assert [each.command_id for each in statement.commands] == [after.command_id]
    view = await installation.owner.command(forged)
    assert view.state == QUARANTINED
    assert true.command_id != forged
    await installation.owner.wait_audit("command.quarantined")


async def test_a_command_written_where_the_next_seq_belongs_is_taken_out(installation: Installation) -> None:
    node = await installation.add_node("n-1")
    first = await installation.owner.run("n-1")
    copy = (
        "INSERT INTO commands (node_id, seq, command_id, issue_id, spec_no, not_after_ms, mac, state)"
        " SELECT node_id, seq + 1, ?, issue_id, spec_no, not_after_ms, mac, 1 FROM commands WHERE seq = 1"
    )
    write(installation, copy, b"forged-command-2")

    after = await installation.owner.run("n-1")

    assert after[0].state == SUCCEEDED
    assert_each_ran_once(node, [view.command_id for view in (*first, *after)])
    await installation.owner.wait_audit("command.quarantined")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE command_issues SET actor = 'somebody-else'",
        "UPDATE command_issues SET specs = x'0a0d0a0b73696d756c617465642e78'",
        "UPDATE commands SET not_after_ms = not_after_ms + 86400000",
        "UPDATE commands SET command_id = x'00112233445566778899aabbccddeeff'",
    ],
    ids=["actor", "specs", "expiry", "id"],
)
async def test_a_command_changed_in_the_database_is_quarantined(installation: Installation, change: str) -> None:
    node = await installation.add_node("n-1")
    await node.stop()
    issued = await installation.owner.issue("n-1")
    await installation.crash_server()
    assert write(installation, change) == 1
    await installation.start_server()

    await node.start()
    after = await installation.owner.run("n-1")

    listed = await installation.owner.ask("ListCommands", admin_pb2.ListCommandsRequest(issue_id=issued.issue_id))
    assert [view.state for view in listed.commands] == [QUARANTINED]
    await installation.owner.wait_audit("command.quarantined")
    assert_each_ran_once(node, [view.command_id for view in after])


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE nodes SET identity_key = x'" + "11" * 32 + "'",
        "UPDATE nodes SET state = 'ACTIVE', state_reason = ''",
        'UPDATE nodes SET labels = \'{"line": "two"}\'',
    ],
    ids=["key", "state", "labels"],
)
async def test_a_node_changed_in_the_database_is_quarantined(quick: Installation, change: str) -> None:
    node = await quick.add_node("n-1")
    await quick.owner.set_state("n-1", "SUSPENDED", "odd readings")
    await node.stop()
    await quick.crash_server()
    assert write(quick, change) == 1
    await quick.start_server()

    await node.start(wait_live=False)

    # A changed key is found first by the proof that does not fit it: a stranger is told nothing of a node's state.
    assert await node.wait_refused("BAD_PROOF" if "identity_key" in change else "QUARANTINED")
    assert (await quick.owner.node("n-1")).state == "QUARANTINED"
    answer = await quick.owner.issue("n-1")
    assert [each.reason for each in answer.refused] == ["QUARANTINED"]
    await quick.owner.wait_audit("node.quarantined")


async def test_a_database_of_another_key_is_refused_at_the_start(installation: Installation) -> None:
    await installation.crash_server()
    (installation.data / "secret.key").unlink()
    with pytest.raises(Exception, match=r"secret encryption key|restore"):
        await installation.start_server()
