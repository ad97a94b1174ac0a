"""The cycle collector of a server that has started."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from fleet_server.observability import garbage


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_what_the_start_built_is_not_walked_again() -> None:
    built = [object() for _ in range(10)]
    garbage.settle()
    assert gc.get_freeze_count() > 0
    assert not any(each is built for each in gc.get_objects())


def test_the_rows_of_one_transaction_do_not_start_a_collection() -> None:
    garbage.settle()
    collections = gc.get_stats()[0]["collections"]
    rows = [[number] for number in range(garbage.YOUNG_OBJECTS // 2)]
    assert gc.get_stats()[0]["collections"] == collections
    assert len(rows) == garbage.YOUNG_OBJECTS // 2


def test_cycles_are_still_collected() -> None:
    garbage.settle()
    assert gc.isenabled()
    assert gc.get_threshold()[0] == garbage.YOUNG_OBJECTS
