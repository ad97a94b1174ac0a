"""An endpoint that is new is taken to show the leaf of the last one, until it shows that it has another."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from fleet.errors import Reason, Refusal
from fleet_node.link import caller
from fleet_node.link.caller import LeafCache

CA, OTHER_CA = (b"ca",), (b"ca", b"new")


class Shown:
    """What endpoints show, and which of them were asked for it."""

    def __init__(self, **leaves: bytes) -> None:
        self.leaves = leaves
        self.asked: list[str] = []

    async def fetch(self, endpoint: str, ca_der: Sequence[bytes], client: Path | None) -> bytes:
        self.asked.append(endpoint)
        if endpoint not in self.leaves:
            raise Refusal(Reason.UNAVAILABLE, "away")
        return self.leaves[endpoint]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    found = Shown(a=b"one", b=b"one", c=b"another")
    monkeypatch.setattr(caller, "_fetch", found.fetch)
    return found


async def test_replicas_that_show_one_leaf_are_asked_for_it_once(shown: Shown) -> None:
    leaves = LeafCache()
    assert [await leaves.get(endpoint, CA) for endpoint in "abab"] == [b"one"] * 4
    assert shown.asked == ["a"]


async def test_one_that_shows_another_leaf_is_asked_for_it_when_that_comes_out(shown: Shown) -> None:
    leaves = LeafCache()
    assert [await leaves.get(endpoint, CA) for endpoint in "ac"] == [b"one", b"one"]
    leaves.forget("c")
    assert await leaves.get("c", CA) == b"another"
    assert [await leaves.get(endpoint, CA) for endpoint in "acac"] == [b"one", b"another"] * 2
    assert shown.asked == ["a", "c"]


async def test_a_renewed_leaf_is_looked_up_at_the_first_that_shows_it(shown: Shown) -> None:
    leaves = LeafCache()
    assert [await leaves.get(endpoint, CA) for endpoint in "ab"] == [b"one", b"one"]
    shown.leaves.update(a=b"two", b=b"two")
    leaves.forget("a")
    assert await leaves.get("a", CA) == b"two"
    leaves.forget("b")
    assert await leaves.get("b", CA) == b"two"
    assert shown.asked == ["a", "a", "b"]


async def test_what_was_verified_under_other_cas_is_no_guess(shown: Shown) -> None:
    leaves = LeafCache()
    await leaves.get("a", CA)
    await leaves.get("b", OTHER_CA)
    assert shown.asked == ["a", "b"]
    del shown.leaves["a"]
    assert await leaves.get("a", OTHER_CA) == b"one"  # the guess may be wrong about who is there: the connection tells
