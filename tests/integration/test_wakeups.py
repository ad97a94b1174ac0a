"""Two replicas that wake each other, by each transport: at once while it lives, by their polls when it is silent.

Polls are put off for an hour where a test shows what hints do by themselves.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from fleet.v1 import admin_pb2, command_pb2
from fleet_server.commands import following, poll
from fleet_server.database import relay
from fleet_server.nodes import poll as decisions
from tests.fakes.nats import start_nats
from tests.fakes.process import Processes
from tests.integration.installation import QUICK, Installation, free_ports
from tests.integration.several import several
from tests.integration.waiting import eventually

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer

NEVER_S = 3600.0
INTERVALS = ((poll, poll.INTERVAL_S), (following, following.INTERVAL_S), (decisions, decisions.INTERVAL_S))
Replicas = list[Installation]


@pytest.fixture
def no_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens now happens by hints."""
    for module, _ in INTERVALS:
        monkeypatch.setattr(module, "INTERVAL_S", NEVER_S)


def poll_again(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls come as they do in production, from now on."""
    for module, interval_s in INTERVALS:
        monkeypatch.setattr(module, "INTERVAL_S", interval_s)
    for each in replicas:
        each.server.wakeup.hinted_everything()


async def wait_up(replicas: Replicas, *, up: bool = True) -> None:
    await eventually(
        lambda: all(each.server.relay is not None and each.server.relay.is_up is up for each in replicas), f"up: {up}"
    )


@pytest.fixture
async def by_notify(tmp_path: Path, postgres: "PostgresServer", no_polls: None) -> AsyncIterator[Replicas]:
    async with several(tmp_path, postgres, ["replica-a", "replica-b"]) as running:
        await wait_up(running)
        yield running


@pytest.fixture
async def silent(tmp_path: Path, postgres: "PostgresServer") -> AsyncIterator[Replicas]:
    async with several(tmp_path, postgres, ["replica-a", "replica-b"], wakeup="off") as running:
        yield running


async def check_all_is_heard(here: Installation, there: Installation, node: str) -> None:
    """Whatever an operator asks of `there` reaches a node whose stream is `here`, and what it answers comes back."""
    issued = await there.owner.issue(node, count=3)
    views = await there.owner.outcomes(issued.issue_id)  # the watch ends, at the replica that records nothing
    assert [view.state for view in views] == [command_pb2.COMMAND_STATE_SUCCEEDED] * 3
    slow = await there.owner.issue(node, action="simulated.work", arguments={"latency_ms": 600_000})
    (running,) = slow.issued
    started = lambda view: view.state == command_pb2.COMMAND_STATE_RUNNING  # noqa: E731
    await there.owner.wait_command(running.command_id, started)
    await there.owner.cancel(running.command_id)
    (cancelled,) = await there.owner.outcomes(slow.issue_id)
    assert cancelled.state == command_pb2.COMMAND_STATE_CANCELLED
    drain = admin_pb2.DrainNodesRequest(selector=admin_pb2.Selector(patterns=[node]))
    answers = [answer async for answer in there.owner.follow("DrainNodes", drain)]
    assert answers[-1].done
    await there.owner.ask("ResumeNodes", admin_pb2.ResumeNodesRequest(selector=drain.selector))


async def test_notifications_carry_all_that_replicas_tell_each_other_and_a_cut_costs_nothing(
    by_notify: Replicas, postgres: "PostgresServer", monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = by_notify
    await here.add_node("n-1")
    await check_all_is_heard(here, there, "n-1")
    figures = there.server.metrics.wakeup
    assert figures.sent.value > 0
    assert here.server.metrics.wakeup.received.value > 0
    database = here.settings.resolved_database_url().split("/")[-1].split("?")[0]
    with psycopg.connect(postgres.plain_url(database), autocommit=True) as admin:
        cut = admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'fleet-server wakeup'"
        ).fetchall()
    assert len(cut) == 4, "two of each replica"
    issued = await there.owner.issue("n-1")  # whether it is heard before, behind or by the round of a new connection
    assert [view.state for view in await there.owner.outcomes(issued.issue_id)] == [command_pb2.COMMAND_STATE_SUCCEEDED]
    await wait_up(by_notify)
    await check_all_is_heard(here, there, "n-1")


async def test_without_a_word_polls_find_it_all(silent: Replicas) -> None:
    here, there = silent
    await here.add_node("n-1")
    assert here.server.relay is None
    await check_all_is_heard(here, there, "n-1")


async def test_nats_carries_it_too_and_while_it_is_away_polls_do(
    tmp_path: Path,
    postgres: "PostgresServer",
    processes: Processes,
    no_polls: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay, "CONNECT_AGAIN", QUICK)
    (port,) = free_ports(1)
    server = start_nats(processes, port)
    wakeup: dict[str, Any] = {"wakeup": f"nats://127.0.0.1:{port}"}
    async with several(tmp_path, postgres, ["replica-a", "replica-b"], **wakeup) as replicas:
        here, there = replicas
        await wait_up(replicas)
        await here.add_node("n-1")
        await check_all_is_heard(here, there, "n-1")
        server.kill()
        await wait_up(replicas, up=False)
        poll_again(replicas, monkeypatch)
        await check_all_is_heard(here, there, "n-1")
        for module, _ in INTERVALS:
            monkeypatch.setattr(module, "INTERVAL_S", NEVER_S)
        start_nats(processes, port)
        await wait_up(replicas)
        await check_all_is_heard(here, there, "n-1")
