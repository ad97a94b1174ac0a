"""What the database is asked for in place of every node leaves out nobody who is meant."""

import pytest

from fleet_server.nodes import selectors
from tests.unit.fleet_server.nodes.test_service import make
from tests.unit.fleet_server.sessions.world import World

ODD = ("a_b", "aXb", "a.b", "", "x:y/z", "A_b", "-")
SELECTORS = [
    *([f"odd={value}"] for value in ODD),
    *([pattern] for pattern in ("web-*", "web-[0-3]*", "web-?", "*[-]1", "[!w]*", "*[0-9]", "no*", "[", "*[", "web*]")),
    *(
        [pattern]
        for pattern in ("role=web,web-[!4]*", "site=berlin,odd=a_b", "odder=a_b", "role=w%", "odd=a b", "site=b%")
    ),
    ["web-0*", "odd=A_b"],
    ["web-0*", "db-1"],
    ["web-0*"] * 30,
]


@pytest.fixture
async def fleet(world: World) -> World:
    """Nodes with odd labels."""
    for number, value in enumerate(ODD):
        await make(world, f"web-{number}", labels={"odd": value, "role": "web"}, site="berlin")
    await make(world, "db-1", labels={"role": "db", "odder": "a_b"}, site="paris")
    return world


async def test_a_selector_finds_all_that_match_it(fleet: World) -> None:
    every = await fleet.nodes.select(["*"], limit=100)
    for patterns in SELECTORS:
        selector = selectors.parse(patterns)
        found = await fleet.database.read(lambda conn, patterns=patterns: fleet.nodes.resolve(conn, patterns))  # type: ignore[misc]
        assert [node.name for node in found] == [node.name for node in every if selector.matches(node)], patterns


async def test_a_glob_or_a_label_reads_few_rows(fleet: World) -> None:
    for patterns, most in ((["web-1*"], 1), (["odd=x:y/z"], 1), (["site=paris"], 1), (["role=web,web-[12]"], len(ODD))):
        hints = selectors.parse(patterns).hints()
        rows = await fleet.database.read(lambda conn, hints=hints: fleet.nodes._store.every(conn, hints))  # type: ignore[misc]
        assert 0 < len(rows) <= most, patterns
