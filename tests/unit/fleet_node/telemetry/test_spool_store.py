"""The spool: bounded, in order, counted, and there again after a kill."""

import stat
from pathlib import Path

import pytest

from fleet_node.telemetry.encoder import Batch, Series
from fleet_node.telemetry.spool_store import Spool, SpoolUnavailableError

CPU = Series("host.cpu", (("core", "0"),), "gauge", "percent")
NOW_MS = 1_900_000_000_000


def batch(value: float, series: Series = CPU) -> Batch:
    return Batch(NOW_MS, (series,), (value,))


def open_spool(folder: Path, *, max_bytes: int = 1 << 20, now_ms: int = NOW_MS) -> Spool:
    return Spool(folder / "spool.db", max_bytes=max_bytes, now_ms=now_ms)


def values(spool: Spool, after_seq: int = 0) -> list[float]:
    return [value for stored in spool.read(after_seq, 1 << 20) for value in stored.values]


def test_batches_come_back_in_order_after_a_reopen_with_their_series(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.append([batch(1), batch(2)])
    spool.append([batch(3)])
    first = spool.read(0, 1)[0].batch_seq
    spool.close()

    again = open_spool(tmp_path)

    assert values(again) == [1, 2, 3]
    assert again.catalog == {1: CPU}
    assert again.counters.batches == 3
    assert again.counters.last_batch_seq >= first + 2
    assert stat.S_IMODE((tmp_path / "spool.db").stat().st_mode) == 0o600


def test_numbers_grow_past_a_lost_spool_and_a_clock_that_went_back(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.append([batch(1)])
    given = spool.counters.last_batch_seq
    spool.close()

    back = open_spool(tmp_path, now_ms=1000)
    back.append([batch(2)])
    assert back.counters.last_batch_seq > given
    back.close()

    (tmp_path / "spool.db").unlink()
    lost = open_spool(tmp_path, now_ms=NOW_MS + 60_000)
    lost.append([batch(3)])
    assert lost.counters.last_batch_seq > given + 1


def test_trimming_is_cumulative(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.append([batch(number) for number in range(5)])
    second = spool.read(0, 1 << 20)[1].batch_seq

    spool.trim(second)

    assert values(spool) == [2, 3, 4]
    assert spool.counters.batches == 3


def test_the_oldest_are_dropped_and_counted_when_there_is_no_room(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, max_bytes=500)
    for number in range(50):
        spool.append([batch(number)])

    kept = values(spool)
    counters = spool.counters
    assert kept == [float(number) for number in range(50 - len(kept), 50)]
    assert counters.size_bytes <= 500
    assert counters.dropped_total == 50 - len(kept)
    assert counters.dropped_through == spool.read(0, 1)[0].batch_seq - 1
    spool.close()
    again = open_spool(tmp_path, max_bytes=500).counters
    assert (again.dropped_total, again.dropped_through) == (counters.dropped_total, counters.dropped_through)


def test_what_a_full_disk_does_not_take_is_counted_and_the_next_fits_again(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.append([batch(1)])
    spool._connection.execute("PRAGMA query_only = ON")

    with pytest.raises(SpoolUnavailableError):
        spool.append([batch(2, Series("new", (), "gauge", "1"))])
    assert spool.dropped_total == 1
    spool._connection.execute("PRAGMA query_only = OFF")
    spool.append([batch(3, Series("new", (), "gauge", "1"))])

    assert values(spool) == [1, 3]
    assert spool.counters.dropped_total == 1
    assert set(spool.catalog.values()) == {CPU, Series("new", (), "gauge", "1")}


def test_a_damaged_spool_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "spool.db").write_bytes(b"no database at all, but long enough to be one" * 100)

    spool = open_spool(tmp_path)
    spool.append([batch(1)])

    assert spool.on_disk
    assert values(spool) == [1]
    assert (tmp_path / "spool.db.damaged").exists()


def test_without_a_disk_memory_takes_its_place(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "missing" / "spool.db", max_bytes=1 << 30, now_ms=NOW_MS)
    spool.append([batch(1)])

    assert not spool.on_disk
    assert values(spool) == [1]


def test_series_that_come_and_go_are_forgotten_and_their_numbers_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet_node.telemetry.spool_store.MAX_SERIES", 10)
    spool = open_spool(tmp_path)
    numbers: list[int] = []
    for number in range(40):
        spool.append([batch(number, Series(f"s{number}", (), "gauge", "1"))])
        stored = spool.read(0, 1 << 20)[-1]
        numbers.append(stored.series[0])
        spool.trim(stored.batch_seq)

    assert len(spool.catalog) <= 11
    assert numbers == sorted(set(numbers))


def test_a_batch_that_the_disk_damaged_holds_up_none_behind_it(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.append([batch(number) for number in range(4)])
    seqs = [stored.batch_seq for stored in spool.read(0, 1 << 20)]
    torn = spool.read(0, 1 << 20)[2]
    torn.values.append(9)
    for seq, raw in ((seqs[1], b"\xff\xff"), (seqs[2], torn.SerializeToString())):
        spool._connection.execute("UPDATE batches SET batch = ? WHERE batch_seq = ?", (raw, seq))

    assert values(spool) == [0, 3]
    assert values(spool, after_seq=seqs[0]) == [3]


def test_more_series_in_use_than_are_kept_cost_no_walk_of_the_spool_at_every_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet_node.telemetry.spool_store.MAX_SERIES", 10)
    walks: list[int] = []
    prune = Spool._prune_series
    monkeypatch.setattr(Spool, "_prune_series", lambda self: (walks.append(len(self.catalog)), prune(self)))
    spool = open_spool(tmp_path)
    for number in range(100):
        spool.append([batch(number, Series(f"s{number}", (), "gauge", "1"))])

    assert len(spool.catalog) == 100
    assert len(walks) <= 5
