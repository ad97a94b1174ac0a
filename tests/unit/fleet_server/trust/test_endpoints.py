"""Endpoints of replicas whose settings differ: joined, stable, and dropped a day after nobody names them any more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from fleet_server.database.engine import Database
from fleet_server.trust.endpoints import MAX_ENDPOINTS, STATED_EVERY_MS, EndpointList, joined, stated
from fleet_server.trust.service import CHECK_INTERVAL_S, TrustService
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.trust.test_trust import edit, make

DAY_S = 24 * 3600


def row(replica_id: str, *endpoints: str, since_ms: int = 1, stated_ms: int = 1) -> EndpointList:
    return EndpointList("c", replica_id, endpoints, since_ms, stated_ms)


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ([], ()),
        ([row("a", "x:1", "y:1")], ("x:1", "y:1")),
        ([row("a", "x:1"), row("b", "x:1")], ("x:1",)),
        ([row("a", "x:1", "y:1"), row("b", "y:1", "x:1")], ("x:1", "y:1")),
        ([row("a", "x:1", "y:1"), row("b", "y:1", "x:1", since_ms=2)], ("y:1", "x:1")),
        ([row("a", "x:1", since_ms=2), row("b", "z:1", "x:1", since_ms=3), row("c", "w:1")], ("z:1", "x:1", "w:1")),
        ([row("a", *(f"e{number}:1" for number in range(50)))], tuple(f"e{number}:1" for number in range(32))),
    ],
)
def test_joined(lists: list[EndpointList], expected: tuple[str, ...]) -> None:
    assert joined(lists) == expected


LISTS = st.builds(
    row,
    st.sampled_from("abcd"),
    st.sampled_from(["x:1", "y:1", "z:1"]),
    st.sampled_from(["x:1", "w:1"]),
    since_ms=st.integers(1, 3),
)


@given(st.lists(LISTS, max_size=4, unique_by=lambda each: each.replica_id), st.randoms())
def test_all_replicas_make_the_same_of_the_same_rows(lists: list[EndpointList], random: object) -> None:
    before = joined(lists)
    random.shuffle(lists)  # type: ignore[attr-defined]
    assert joined(lists) == before
    assert set(before) == {endpoint for each in lists for endpoint in each.endpoints}
    assert len(before) <= MAX_ENDPOINTS


@pytest.mark.parametrize(
    ("held", "own", "expected"),
    [
        (None, row("a", "x:1", since_ms=9, stated_ms=9), row("a", "x:1", since_ms=9, stated_ms=9)),
        (row("a", "x:1"), row("a", "x:1", since_ms=9, stated_ms=9), None),
        (row("a", "x:1"), row("a", "y:1", since_ms=9, stated_ms=9), row("a", "y:1", since_ms=9, stated_ms=9)),
        (
            row("a", "x:1"),
            row("a", "x:1", since_ms=1 + STATED_EVERY_MS, stated_ms=1 + STATED_EVERY_MS),
            row("a", "x:1", since_ms=1, stated_ms=1 + STATED_EVERY_MS),
        ),
        (row("a", "x:1", stated_ms=10), row("a", "x:1", since_ms=9, stated_ms=9), row("a", "x:1", stated_ms=9)),
    ],
)
def test_stated(held: EndpointList | None, own: EndpointList, expected: EndpointList | None) -> None:
    assert stated(held, own) == expected


# -- over a database --------------------------------------------------------------------------------------------------
async def replica(
    database: Database, clock: MockClock, name: str, *endpoints: str, as_replica: bool = True
) -> TrustService:
    trust = make(database, clock, writer=name)
    await trust.create_cluster()
    await trust.load()
    await trust.publish_bundle(endpoints, as_replica=as_replica)
    return trust


async def check(clock: MockClock, *replicas: TrustService, rounds: int = 1, pause_s: float = CHECK_INTERVAL_S) -> None:
    """What every replica does each minute."""
    for _ in range(rounds):
        await clock.advance(pause_s)
        for each in replicas:
            await each._refresh()


async def test_replicas_with_different_settings_agree_on_one_bundle(database: Database, clock: MockClock) -> None:
    one = await replica(database, clock, "r-1", "a:1", "shared:1")
    await clock.advance(1)
    other = await replica(database, clock, "r-2", "b:1", "shared:1")
    await check(clock, one, other, rounds=2)
    settled = one.bundle.version
    await check(clock, one, other, rounds=20)
    assert one.bundle.version == other.bundle.version == settled
    assert one.bundle.endpoints == ("b:1", "shared:1", "a:1")
    await other.publish_bundle(["b:1", "shared:1"])
    await check(clock, one, other)
    assert one.bundle.version == settled, "a restart without a change is none"


async def test_a_change_of_settings_reaches_nodes_replica_by_replica(database: Database, clock: MockClock) -> None:
    replicas = [await replica(database, clock, f"r-{number}", "old:1") for number in (1, 2)]
    await clock.advance(1)
    await replicas[0].publish_bundle(["new:1"])
    assert replicas[0].bundle.endpoints == ("new:1", "old:1")
    await replicas[1].publish_bundle(["new:1"])
    await check(clock, *replicas)
    assert {each.bundle.endpoints for each in replicas} == {("new:1",)}


async def test_what_no_replica_names_for_a_day_is_dropped(database: Database, clock: MockClock) -> None:
    one = await replica(database, clock, "r-1", "a:1")
    await replica(database, clock, "r-2", "b:1")
    await check(clock, one, rounds=12, pause_s=2 * 3600)
    assert set(one.bundle.endpoints) == {"a:1", "b:1"}
    await check(clock, one)
    assert one.bundle.endpoints == ("a:1",)


async def test_a_process_that_does_not_serve_adds_nothing_to_what_replicas_offer(
    database: Database, clock: MockClock
) -> None:
    alone = await replica(database, clock, "init", "first:1", as_replica=False)
    assert alone.bundle.endpoints == ("first:1",)
    one = await replica(database, clock, "r-1", "a:1")
    assert one.bundle.endpoints == ("a:1",)
    version = one.bundle.version
    again = await replica(database, clock, "init", "first:1", as_replica=False)
    assert again.bundle.version == version


async def test_a_list_that_was_written_around_the_server_reaches_no_node(database: Database, clock: MockClock) -> None:
    one = await replica(database, clock, "r-1", "a:1")
    await replica(database, clock, "r-2", "b:1")
    await edit(database, "UPDATE gateway_endpoints SET endpoints = 'evil:1' WHERE replica_id = 'r-2'")
    await edit(
        database,
        "INSERT INTO gateway_endpoints (cluster_id, replica_id, endpoints, since_ms, stated_ms, mac)"
        " SELECT cluster_id, 'r-3', endpoints, since_ms, stated_ms, mac FROM gateway_endpoints"
        " WHERE replica_id = 'r-1'",
    )
    with capture_logs() as logs:
        await check(clock, one, rounds=2)
    assert one.bundle.endpoints == ("a:1",)
    assert [log["event"] for log in logs].count("gateway_endpoints_tampered") == 2
