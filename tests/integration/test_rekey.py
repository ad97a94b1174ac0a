"""The secret encryption key is changed under a running server; killed in the middle; and then the old key is gone."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fleet.clock import SystemClock
from fleet.errors import Refusal
from fleet.secrets import Secret
from fleet.v1 import admin_pb2, command_pb2
from fleet_server import rekeying
from fleet_server.database.engine import Database, sql
from fleet_server.database.marked import MARKED_TABLES
from fleet_server.database.schema import metadata
from fleet_server.database.writer import Transaction
from fleet_server.rekeying import Change
from fleet_server.replicas import rules
from fleet_server.trust import master_keys
from fleet_server.trust.keyring import TrustSetupError
from fleet_server.trust.secrets import Secrets, make_key_file, read_key_file
from tests.fakes.process import Processes
from tests.integration import standing_still
from tests.integration.installation import Installation, Template
from tests.integration.on_postgres import copy_installation

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer


class Rekeyed(Installation):
    """An installation whose server holds two keys."""

    old_file: Path
    new_file: Path
    said: list[str]

    def change(self, old: Secret[bytes] | None = None) -> Change:
        """A run of the change."""
        self.said = []
        return Change(
            self.settings.resolved_database_url(),
            old=old or read_key_file(self.old_file),
            new=read_key_file(self.new_file),
            clock=SystemClock(),
            say=self.said.append,
        )

    async def restart(self, **settings: Any) -> None:
        """The server again, with other keys."""
        await self.crash_server()
        self.settings = self.settings.model_copy(update=settings)
        await self.start_server()

    async def under(self, key: Secret[bytes]) -> tuple[int, list[str]]:
        """How many rows are under `key`, and those that are not."""
        walks = Change(
            self.settings.resolved_database_url(),
            old=Secret(os.urandom(32)),
            new=key,
            clock=SystemClock(),
            say=self.said.append,
        )
        walks._database.start()
        seen, refused = 0, []
        for walk in walks._walks:
            batch = await walks._database.write(lambda tx, walk=walk: walk.batch(tx.conn, None, 100_000))
            assert batch.done == 0
            seen += batch.seen
            refused += batch.refused
        await walks._database.close()
        return seen - len(refused), refused


@pytest.fixture(params=["sqlite", "postgresql"])
def made(request: pytest.FixtureRequest, template: Template) -> tuple[Template, dict[str, Any]]:
    """A new installation on either database, and the settings that say which."""
    if request.param == "sqlite":
        return template, {}
    postgres: PostgresServer = request.getfixturevalue("postgres")
    there, name = copy_installation(postgres)
    return there, {"database_url": postgres.url(name)}


@pytest.fixture
def attentive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers look for a change, and tell which key they write under, ten times as often; so does who waits for it.
    A walk pauses for a tenth of the time."""
    monkeypatch.setattr(master_keys, "LOOK_INTERVAL_S", master_keys.LOOK_INTERVAL_S / 10)
    monkeypatch.setattr(rules, "HEARTBEAT_INTERVAL_S", rules.HEARTBEAT_INTERVAL_S / 10)
    monkeypatch.setattr(rekeying, "_LOOK_S", rekeying._LOOK_S / 10)
    monkeypatch.setattr(rekeying, "PAUSE_S", rekeying.PAUSE_S / 10)


@pytest.fixture
async def rekeyed(tmp_path: Path, made: tuple[Template, dict[str, Any]], attentive: None) -> AsyncIterator[Rekeyed]:
    """A running server that holds the old key and the new, with something in every table."""
    template, changes = made
    new_file = tmp_path / "new.key"
    make_key_file(new_file)
    old_file = tmp_path / "server" / "secret.key"
    keys = {"secret_encryption_key_file": new_file, "secret_encryption_key_previous_file": old_file}
    running = Rekeyed(tmp_path, template, **changes, **keys)
    running.old_file, running.new_file, running.said = old_file, new_file, []
    async with running:
        await running.add_node("n-1")
        await (await running.operator("ben", "viewer")).close()
        waiting = await running.join_token(auto_approve=False)
        node = running.nodes["n-1"]
        other = type(node)(tmp_path / "n-2", "n-2", running.clock, endpoints=(running.gateway,))
        await other.enrollment().apply(waiting, other.applicant)
        assert len(await running.owner.run("n-1", count=20)) == 20
        await running.enroll("n-3")
        away = admin_pb2.RotateNodesRequest(selector=admin_pb2.Selector(patterns=["n-3"]), api_key=True)
        assert len((await running.owner.ask("RotateNodes", away)).nodes) == 1
        yield running


def succeeded(views: list[admin_pb2.CommandView]) -> int:
    return sum(view.state == command_pb2.COMMAND_STATE_SUCCEEDED for view in views)


def test_every_table_that_is_marked_or_sealed_is_walked() -> None:
    """Who adds a column `mac` or `sealed…` adds the table to `database.marked`."""
    kept = {
        table.name
        for table in metadata.tables.values()
        if any(column.name == "mac" or column.name.startswith("sealed") for column in table.columns)
    }
    assert kept == {table.name for table in MARKED_TABLES} | {"commands"}
    for table in MARKED_TABLES:
        columns = metadata.tables[table.name].columns
        assert {*table.key} == {column.name for column in columns if column.primary_key}
        assert {*table.covered, *filter(None, [table.sealed])} <= set(columns.keys())
        assert ("mac" in columns) == bool(table.covered)


async def test_the_key_is_changed_under_traffic_and_the_old_one_is_not_needed_any_more(rekeyed: Rekeyed) -> None:
    new, old = read_key_file(rekeyed.new_file), read_key_file(rekeyed.old_file)
    assert (await rekeyed.under(new))[0] == 0  # a server that holds both writes under the old one until the change
    change = asyncio.create_task(rekeyed.change().run())
    ran = 0
    while not change.done():
        ran += succeeded(await rekeyed.owner.run("n-1", count=5))
    outcome = await change
    assert outcome.refused == ()
    assert outcome.done > 30
    assert ran
    assert any("commands" in line for line in rekeyed.said)
    assert succeeded(await rekeyed.owner.run("n-1", count=5)) == 5
    assert (await rekeyed.under(new))[1] == []
    assert (await rekeyed.under(old))[0] == 0

    await rekeyed.restart(secret_encryption_key_previous_file=None)
    rekeyed.old_file.unlink()
    node = rekeyed.nodes["n-1"]
    await node.wait_live(streams=2)
    assert succeeded(await rekeyed.owner.run("n-1", count=5)) == 5  # with the api_key and token that it had
    rows = await rekeyed.owner.audit("secrets.rekey_started", "secrets.rekeyed")
    assert [row.kind for row in rows] == ["secrets.rekey_started", "secrets.rekeyed"]
    assert await rekeyed.owner.audit("node.quarantined", "command.quarantined", "api_key.quarantined") == []
    again = await rekeyed.owner.ask("ListOperators", admin_pb2.ListOperatorsRequest())
    assert {each.name for each in again.operators} == {"owner", "ben"}


async def test_killed_in_the_middle_it_goes_on_and_the_server_serves_meanwhile(
    rekeyed: Rekeyed, processes: Processes
) -> None:
    new = read_key_file(rekeyed.new_file)
    environment = {
        "FLEET_DATABASE_URL": rekeyed.settings.resolved_database_url(),
        "FLEET_SECRET_ENCRYPTION_KEY_FILE": str(rekeyed.old_file),
        "FLEET_DATA_DIR": str(rekeyed.data),
    }
    words = ["secrets", "rekey", "--new-key-file", str(rekeyed.new_file)]
    total, _ = await rekeyed.under(read_key_file(rekeyed.old_file))
    reached = 0
    for place, goal in (("between", 3), ("within", 17)):
        process = processes.fork(standing_still.__name__, place, str(goal), *words, name=place, env=environment)
        await asyncio.to_thread(process.wait_line, standing_still.SAYS)
        process.kill()
        done, left = await rekeyed.under(new)
        assert done >= reached + goal
        assert left, "killed too late to be in the middle"
        reached = done
        assert succeeded(await rekeyed.owner.run("n-1", count=2)) == 2
    assert reached < total
    outcome = await rekeyed.change().run()
    assert "the new key writes already: going on" in rekeyed.said
    assert outcome.refused == ()
    assert (await rekeyed.under(new))[1] == []
    await rekeyed.restart(secret_encryption_key_previous_file=None)
    await rekeyed.nodes["n-1"].wait_live(streams=2)
    assert succeeded(await rekeyed.owner.run("n-1")) == 1


async def test_two_runs_at_once_do_the_work_once_and_each_writes_an_audit_chain_of_its_own(rekeyed: Rekeyed) -> None:
    runs = [rekeyed.change().run() for _ in range(3)]
    outcomes = await asyncio.gather(*runs)
    new, old = read_key_file(rekeyed.new_file), read_key_file(rekeyed.old_file)
    assert (await rekeyed.under(new))[1] == []
    assert (await rekeyed.under(old))[0] == 0
    assert [each.refused for each in outcomes] == [()] * 3
    rows = await rekeyed.owner.audit("secrets.rekey_started", "secrets.rekeyed")
    assert [row.kind for row in rows].count("secrets.rekey_started") == 1
    ended = [row for row in rows if row.kind == "secrets.rekeyed"]
    assert len({row.writer for row in ended}) == 3


async def test_a_run_that_begins_beside_one_to_a_third_key_is_refused(rekeyed: Rekeyed) -> None:
    old, new = (Secrets(read_key_file(each)) for each in (rekeyed.old_file, rekeyed.new_file))
    await rekeyed.change().run()
    database = Database(rekeyed.settings.resolved_database_url(), readers=1)
    database.start()
    # It looked before the other run began.
    assert not await database.write(lambda tx: master_keys.begin_change(tx.conn, old, new, 1))
    with pytest.raises(TrustSetupError, match="another run changes"):
        await database.write(lambda tx: master_keys.begin_change(tx.conn, old, Secrets(Secret(os.urandom(32))), 1))
    await database.close()


async def test_what_a_server_marked_anew_with_its_old_seal_is_sealed_anew_too(rekeyed: Rekeyed) -> None:
    """A change of a command key's phase that had read the row before the walk came by."""
    both = Secrets(read_key_file(rekeyed.new_file), read_key_file(rekeyed.old_file))
    database = Database(rekeyed.settings.resolved_database_url(), readers=1)
    database.start()
    table = next(each for each in MARKED_TABLES if each.name == "command_keys")
    columns = ", ".join(table.covered)

    def mark(tx: Transaction) -> None:
        row = tx.conn.exec_driver_sql(f"SELECT {columns} FROM command_keys").one()
        mac = both.row_mac("command_keys").compute(*row)
        tx.conn.exec_driver_sql(sql(tx.conn, "UPDATE command_keys SET mac = ?"), (mac,))

    await database.write(mark)
    await database.close()
    await rekeyed.change().run()
    await rekeyed.restart(secret_encryption_key_previous_file=None)
    await rekeyed.nodes["n-1"].wait_live(streams=2)
    assert succeeded(await rekeyed.owner.run("n-1")) == 1


async def test_a_row_that_was_edited_is_left_as_it_is_and_named(rekeyed: Rekeyed) -> None:
    database = Database(rekeyed.settings.resolved_database_url(), readers=1)
    database.start()
    await database.write(
        lambda tx: tx.conn.exec_driver_sql(sql(tx.conn, "UPDATE operators SET role = 'owner' WHERE name = ?"), ("ben",))
    )
    await database.write(
        lambda tx: tx.conn.exec_driver_sql(sql(tx.conn, "UPDATE commands SET spec_no = 1 WHERE seq = ?"), (7,))
    )
    await database.close()
    outcome = await rekeyed.change().run()
    assert len(outcome.refused) == 2
    assert [name.split("/")[0] for name in outcome.refused] == ["operators", "commands"]
    operators = await rekeyed.owner.ask("ListOperators", admin_pb2.ListOperatorsRequest())
    assert next(each for each in operators.operators if each.name == "ben").role != "owner"


async def test_a_replica_without_the_new_key_is_named_before_anything_is_changed(
    rekeyed: Rekeyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rekeying, "_PATIENCE_S", 0.5)
    await rekeyed.restart(secret_encryption_key_file=rekeyed.old_file, secret_encryption_key_previous_file=None)
    with pytest.raises(Refusal, match=f"{rekeyed.server.replica_id}.*|do not hold both keys"):
        await rekeyed.change().run()
    assert (await rekeyed.under(read_key_file(rekeyed.new_file)))[0] == 0


async def test_other_keys_are_refused(rekeyed: Rekeyed) -> None:
    with pytest.raises(TrustSetupError, match="is the old one"):
        await rekeyed.change(old=read_key_file(rekeyed.new_file)).run()
    await rekeyed.crash_server()
    strange = rekeyed.folder / "strange.key"
    make_key_file(strange)
    rekeyed.new_file, before = strange, rekeyed.new_file
    with pytest.raises(TrustSetupError, match="under neither"):
        await rekeyed.change(old=read_key_file(before)).run()
    lost = rekeyed.settings.model_copy(update={"secret_encryption_key_previous_file": None})
    rekeyed.settings = lost
    with pytest.raises(TrustSetupError, match="another secret encryption key"):
        await rekeyed.start_server()


def forge(tx: Transaction, leaked: Secrets) -> None:
    """Make ben an owner, as whoever has a key and writes to the database can."""
    columns = "operator_id, name, role, token_sha256, created_at_ms, revoked_at_ms"
    row = [*tx.conn.exec_driver_sql(f"SELECT {columns} FROM operators WHERE name = 'ben'").one()]
    row[2] = "owner"
    mac = leaked.row_mac("operators").compute(*row)
    tx.conn.exec_driver_sql(sql(tx.conn, "UPDATE operators SET role = 'owner', mac = ? WHERE name = 'ben'"), (mac,))


async def bens_role(rekeyed: Rekeyed) -> str:
    found = await rekeyed.owner.ask("ListOperators", admin_pb2.ListOperatorsRequest())
    return next(str(each.role) for each in found.operators if each.name == "ben")


async def write(rekeyed: Rekeyed, work: Callable[[Transaction], Any]) -> None:
    """Write to the database, around the server."""
    database = Database(rekeyed.settings.resolved_database_url(), readers=1)
    database.start()
    await database.write(work)
    await database.close()


async def test_what_is_marked_under_the_old_key_after_the_change_is_marked_anew_by_no_later_run(
    rekeyed: Rekeyed,
) -> None:
    """The settings still name the old key, and somebody runs the change once more."""
    leaked = Secrets(read_key_file(rekeyed.old_file))
    await rekeyed.change().run()
    await write(rekeyed, lambda tx: forge(tx, leaked))

    again = await rekeyed.change().run()

    assert (again.done, [name.split("/")[0] for name in again.refused]) == (0, ["operators"])
    await rekeyed.restart(secret_encryption_key_previous_file=None)
    assert await bens_role(rekeyed) == "quarantined"


@pytest.mark.parametrize("deed", ["UPDATE secret_key_state SET done_at_ms = 0", "DELETE FROM secret_key_state"])
async def test_nobody_makes_a_change_that_has_ended_go_on_by_the_record_of_it(rekeyed: Rekeyed, deed: str) -> None:
    leaked = Secrets(read_key_file(rekeyed.old_file))
    await rekeyed.change().run()
    await write(rekeyed, lambda tx: tx.conn.exec_driver_sql(deed) and forge(tx, leaked))
    with pytest.raises(TrustSetupError, match="was changed outside the server"):
        await rekeyed.change().run()
    with pytest.raises(TrustSetupError, match="was changed outside the server"):
        await rekeyed.restart()


async def test_what_is_marked_under_the_old_key_after_the_change_is_used_for_nothing(rekeyed: Rekeyed) -> None:
    """The old key leaked, and whoever has it writes to the database; the settings still name it."""
    database = Database(rekeyed.settings.resolved_database_url(), readers=1)
    database.start()
    leaked = Secrets(read_key_file(rekeyed.old_file))
    await rekeyed.change().run()
    await rekeyed.server.master_keys.load()
    await database.write(lambda tx: forge(tx, leaked))
    assert await bens_role(rekeyed) == "quarantined"
    # Nor does it take the key up again because somebody says that it should.
    await database.write(
        lambda tx: tx.conn.exec_driver_sql(
            sql(tx.conn, "UPDATE secret_key_state SET key_id = ?, done_at_ms = 0"), (leaked.key_ids[0],)
        )
    )
    with pytest.raises(TrustSetupError):
        await rekeyed.server.master_keys.load()
    assert await bens_role(rekeyed) == "quarantined"
    await database.close()


async def test_the_next_change_begins_with_both_keys(rekeyed: Rekeyed) -> None:
    await rekeyed.change().run()
    third = rekeyed.folder / "third.key"
    make_key_file(third)
    await rekeyed.restart(secret_encryption_key_file=third, secret_encryption_key_previous_file=rekeyed.new_file)
    rekeyed.old_file, rekeyed.new_file = rekeyed.new_file, third
    assert (await rekeyed.change().run()).refused == ()
    assert succeeded(await rekeyed.owner.run("n-1")) == 1


async def test_a_run_after_the_end_finds_nothing_to_do(rekeyed: Rekeyed) -> None:
    await rekeyed.change().run()
    again = await rekeyed.change().run()
    assert (again.done, again.refused) == (0, ())
