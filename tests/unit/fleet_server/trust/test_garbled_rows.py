"""Rows about trust that nobody can read: a server that runs goes on with what it holds."""

import asyncio

import pytest

from fleet.envelope import Domain
from fleet.v1 import trust_pb2
from fleet_server.database.engine import Database
from fleet_server.trust.service import CHECK_INTERVAL_S, TrustService, TrustSetupError
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.trust.test_trust import ENDPOINTS, edit, make, trust, wakeup

__all__ = ["trust", "wakeup"]


@pytest.mark.parametrize("garbage", [b"\xff", trust_pb2.Signed(statement=b"\xff").SerializeToString()])
@pytest.mark.parametrize("which", ["number = 1", "number = 2"])
async def test_a_garbled_bundle_ends_no_server_that_runs_and_is_named_to_one_that_starts(
    trust: TrustService, database: Database, clock: MockClock, garbage: bytes, which: str
) -> None:
    await trust.publish_bundle([*ENDPOINTS, "other.example:7443"])
    before = trust.bundle
    assert before.number == 2
    await edit(database, f"UPDATE trust_bundles SET signed = ? WHERE {which}", garbage)
    with pytest.raises(TrustSetupError, match=r"trust_bundles from a backup"):
        await make(database, clock, writer="r-2").load()
    running = asyncio.create_task(trust.run())
    for _ in range(2):
        await clock.wait_sleepers(1)
        await clock.advance(CHECK_INTERVAL_S)
    await clock.wait_sleepers(1)
    assert not running.done()
    assert trust.bundle is before
    assert trust.sign_command_statement(Domain.COMMAND, b"x", site="").signatures
    running.cancel()
