"""A cursor loses no chunk, in whatever order they appear; answers of receivers mean what OTLP says."""

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_server.telemetry import export_rules
from fleet_server.telemetry.export_rules import WINDOW_S, Cursor, Standing


class Table:
    """Chunks that appear late: each position is taken when its transaction begins, and seen once that commits."""

    def __init__(self, late: dict[int, float]) -> None:
        self._late = late

    def seen(self, now_s: float) -> list[int]:
        return [position for position, at_s in self._late.items() if at_s <= now_s]


def timed(positions: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Chunks at these positions, each of its own time."""
    return ((position, 1000 * position) for position in positions)


@given(
    delays=st.lists(st.floats(0, WINDOW_S - 1), min_size=1, max_size=30),
    looks=st.lists(st.floats(0.1, 20), min_size=1, max_size=40),
    killed_after=st.integers(0, 40),
)
def test_every_chunk_goes_out_also_when_it_appears_late_or_the_process_is_killed(
    delays: list[float], looks: list[float], killed_after: int
) -> None:
    table = Table({number: number + delay for number, delay in enumerate(delays, 1)})
    cursor, sent, now_s = Cursor(0), set[int](), 0.0
    for number, pause_s in enumerate([*looks, WINDOW_S, WINDOW_S, WINDOW_S]):
        now_s += pause_s
        if number == killed_after:
            cursor = Cursor(cursor.settled)
        fresh = [position for position in table.seen(now_s) if position > cursor.newest]
        sent.update(fresh)
        cursor.exported(timed(fresh))
        behind = cursor.missing(timed(each for each in table.seen(now_s) if cursor.settled < each <= cursor.newest))
        sent.update(behind)
        cursor.exported(timed(behind))
        cursor.settle(now_s)
        assert sent >= {position for position in table.seen(now_s) if position <= cursor.settled}
        assert all(position in sent for position in range(1, cursor.settled + 1))
    assert sent == set(range(1, len(delays) + 1))


def test_nothing_goes_out_twice_while_one_process_runs() -> None:
    cursor = Cursor(10)
    cursor.exported(timed([12, 11]))
    assert cursor.missing(timed([10, 11, 12, 13])) == [13]
    cursor.settle(0.0)
    cursor.exported(timed([13]))
    cursor.settle(WINDOW_S)
    assert (cursor.settled, cursor.newest) == (12, 13)
    assert cursor.missing(timed([11, 12, 13])) == []


def test_a_position_that_another_chunk_has_by_now_is_missing_again() -> None:
    cursor = Cursor(10)
    cursor.exported([(11, 5_000), (12, 6_000)])
    assert cursor.missing([(11, 5_000), (12, 9_000)]) == [12]


@pytest.mark.parametrize(("sizes", "count"), [([], 0), ([9], 1), ([4, 4, 4], 2), ([1, 9, 1], 1), ([1, 1], 2)])
def test_chunks_go_together_up_to_a_size_and_a_larger_one_alone(sizes: list[int], count: int) -> None:
    assert export_rules.so_many(sizes, 8) == count


def test_a_cursor_that_begins_anew_forgets_what_was() -> None:
    cursor = Cursor(10)
    cursor.exported(timed([11]))
    cursor.restart(3)
    assert (cursor.settled, cursor.newest) == (3, 3)
    assert cursor.missing(timed([3, 4, 11])) == [4, 11]


@pytest.mark.parametrize(
    ("status", "standing"),
    [
        (200, Standing.TAKEN),
        (204, Standing.TAKEN),
        (400, Standing.REFUSED),
        (413, Standing.REFUSED),
        (401, Standing.SETUP),
        (404, Standing.SETUP),
        (302, Standing.SETUP),
        (429, Standing.LATER),
        (500, Standing.FAULT),
        (501, Standing.SETUP),
        (503, Standing.LATER),
        (522, Standing.LATER),
        (561, Standing.LATER),
    ],
)
def test_an_http_status_says_what_to_do(status: int, standing: Standing) -> None:
    assert export_rules.of_http_status(status) is standing


@pytest.mark.parametrize(
    ("code", "standing"),
    [
        ("UNAVAILABLE", Standing.LATER),
        ("RESOURCE_EXHAUSTED", Standing.LATER),
        ("INVALID_ARGUMENT", Standing.REFUSED),
        ("INTERNAL", Standing.REFUSED),
        ("UNAUTHENTICATED", Standing.SETUP),
        ("UNIMPLEMENTED", Standing.SETUP),
    ],
)
def test_a_grpc_code_says_what_to_do(code: str, standing: Standing) -> None:
    assert export_rules.of_grpc_code(code) is standing


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("1e9", 3600.0), ("-1", 0.0), (None, None), ("soon", None)]
)
def test_a_receiver_asks_for_at_most_an_hour(header: str | None, seconds: float | None) -> None:
    assert export_rules.retry_after_s(header) == seconds
