"""A settled heap is walked no more; cycles made later still go."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from fleet.heap import YOUNG_OBJECTS, settle_heap, starting


class Ring:
    """A cycle of one."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


def test_what_is_alive_is_not_walked_again() -> None:
    alive = Ring()

    settle_heap()

    assert all(one is not alive for one in gc.get_objects())


def test_a_cycle_of_later_goes_without_being_asked_for() -> None:
    settle_heap()
    gone = weakref.ref(Ring())

    kept: list[list[int]] = [[] for _ in range(YOUNG_OBJECTS + 1)]

    assert kept
    assert gone() is None


def test_a_start_is_not_walked_and_what_follows_it_is() -> None:
    with starting():
        assert not gc.isenabled()
        settle_heap()
        assert gc.isenabled()
    with pytest.raises(OSError, match="no room"), starting():
        raise OSError("no room")
    assert gc.isenabled()
