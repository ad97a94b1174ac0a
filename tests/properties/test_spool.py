"""The telemetry spool against a list: order, bounds, counts and what a reopen finds."""

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fleet_node.telemetry.encoder import Batch, Series
from fleet_node.telemetry.spool_store import Spool

MAX_BYTES = 1200
SERIES = [Series(f"s{number}", (("n", str(number)),), "gauge", "1") for number in range(4)]


class SpoolMachine(RuleBasedStateMachine):
    """The model holds (batch_seq, values, series) of everything neither trimmed nor dropped."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._value = 0
        self._held: list[tuple[int, tuple[float, ...], tuple[Series, ...]]] = []
        self._dropped = 0
        self._given = 0
        self._open(now_ms=1000)

    def _open(self, now_ms: int) -> None:
        self._spool = Spool(Path(self._folder.name) / "spool.db", max_bytes=MAX_BYTES, now_ms=now_ms)

    @rule(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4), first=st.integers(0, 3))
    def append(self, sizes: list[int], first: int) -> None:
        batches = []
        for size in sizes:
            self._value += 1
            series = tuple(SERIES[(first + number) % len(SERIES)] for number in range(size))
            batches.append(Batch(self._value, series, (float(self._value),) * size))
        before = self._spool.counters.last_batch_seq
        assert before >= self._given, "a number is never given twice"

        self._spool.append(batches)

        self._held += [(before + number, batch.values, batch.series) for number, batch in enumerate(batches, start=1)]
        self._given = before + len(batches)
        kept = {stored.batch_seq for stored in self._spool.read(0, 1 << 20)}
        lost = [seq for seq, _, _ in self._held if seq not in kept]
        assert lost == [seq for seq, _, _ in self._held[: len(lost)]], "only the oldest are dropped"
        self._held = self._held[len(lost) :]
        self._dropped += len(lost)
        if lost:
            assert self._spool.counters.dropped_through == lost[-1]

    @rule(share=st.floats(0, 1))
    def trim(self, share: float) -> None:
        if self._held:
            seq = self._held[min(int(share * len(self._held)), len(self._held) - 1)][0]
            self._spool.trim(seq)
            self._held = [one for one in self._held if one[0] > seq]

    @rule(now_ms=st.integers(0, 10**6))
    def reopen(self, now_ms: int) -> None:
        self._spool.close()
        self._open(now_ms)

    @rule(after=st.integers(0, 5), max_bytes=st.integers(1, 600))
    def read_a_page(self, after: int, max_bytes: int) -> None:
        start = self._held[min(after, len(self._held) - 1)][0] if self._held else 0

        page = [stored.batch_seq for stored in self._spool.read(start, max_bytes)]

        rest = [seq for seq, _, _ in self._held if seq > start]
        assert page == rest[: len(page)]
        assert bool(page) == bool(rest)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        stored = self._spool.read(0, 1 << 20)
        found = [
            (one.batch_seq, tuple(one.values), tuple(self._spool.catalog[number] for number in one.series))
            for one in stored
        ]
        assert found == self._held
        assert all(len(one.time_offset_ms) == len(one.values) for one in stored)

    @invariant()
    def counts_right(self) -> None:
        counters = self._spool.counters
        assert counters.batches == len(self._held)
        assert counters.size_bytes <= MAX_BYTES or counters.batches == 0
        assert counters.dropped_total == self._dropped
        assert counters.last_batch_seq >= self._given

    def teardown(self) -> None:
        self._spool.close()
        self._folder.cleanup()


TestSpool = SpoolMachine.TestCase
TestSpool.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
