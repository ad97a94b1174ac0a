"""The one place that writes about commands: numbers reports, makes them durable, then lets them be seen.

Mental model
    A change of a command's state is a report with the next report_no. It is committed first and published second, in
    the order of the numbers: an acknowledgement is cumulative, so a number that became visible late would be lost.
    Changes of one turn of the event loop travel as one batch.
    What has happened (a result) is kept and written again until the disk takes it. What is only wanted (a start, an
    acceptance) fails back to its caller and nothing of it happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.v1.command_pb2 import CommandState
from fleet_node.commands import reports
from fleet_node.commands.audit_rows import AuditEvent
from fleet_node.commands.entry import Change, Entry
from fleet_node.commands.journal import Done, Journal
from fleet_node.commands.outbox import Outbox
from fleet_node.commands.rules import FINAL_STATES, STATE_NAMES
from fleet_node.commands.store import Batch, JournalUnavailableError, Recovered
from fleet_node.commands.used_intents import Use
from fleet_node.observability.metrics import CommandMetrics

log = get_logger(__name__)

FIRST_RETRY_S = 1.0
MAX_RETRY_S = 30.0
MAX_TOMBSTONES = 4096
_LOAD_COUNT = 256


class Ledger:
    """Journal, report numbers and outbox together.

    Args:
        journal: started; the ledger does not close it.
        recovered: what `Journal.start` returned.
        clock: for retries.
        wake: called when reports may be given out.
        settled: called when results became durable.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        recovered: Recovered,
        clock: Clock,
        metrics: CommandMetrics,
        wake: Callable[[], None],
        settled: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._metrics = metrics
        self._finished = {state: metrics.finished.labels(STATE_NAMES[state]) for state in FINAL_STATES}
        self._wake = wake
        self._settled = settled
        self._outbox = Outbox(recovered.unacknowledged)
        self.active: dict[int, Entry] = {entry.seq: entry for entry in recovered.unfinished}
        self.tombstones = recovered.tombstones
        self.used = recovered.used
        self.last_accepted_seq = recovered.last_accepted_seq
        self.last_report_no = recovered.last_report_no
        self._acked_report_no = recovered.acked_report_no
        self._results: list[Change] = []
        self._in_flight = 0
        self._flushing = False
        self._retry: asyncio.Task[None] | None = None
        self._retry_s = FIRST_RETRY_S
        self._loading: asyncio.Task[None] | None = None
        self._show_sizes()  # what the last process left counts from the start

    @property
    def first_report_no(self) -> int:
        """First report that is not acknowledged; 0 when none waits."""
        return self._outbox.first_report_no

    @property
    def backlog(self) -> int:
        """Reports that are not acknowledged."""
        return len(self._outbox)

    @property
    def backlog_bytes(self) -> int:
        """What these take in the journal."""
        return self._outbox.size_bytes

    @property
    def unsaved(self) -> int:
        """Results that are not durable yet."""
        return len(self._results) + self._in_flight

    async def accept(
        self,
        entries: Sequence[Entry],
        not_run: Sequence[Change],
        again: Sequence[Entry],
        *,
        last_accepted_seq: int,
        consumed: Iterable[int],
        uses: Sequence[Use],
        audited: Sequence[AuditEvent],
        done: Done,
    ) -> None:
        """Journal the commands of one statement, and number the reports of those that are told again.

        Args:
            entries: new to the journal; they are numbered here.
            not_run: those of them that end where they are accepted.
            again: replayed ones. Those that are changing are told by that change: their state as it stands, written
                after it, would undo it, and let a restart run what has run.
            last_accepted_seq: where it stands afterwards.
            consumed: seqs whose tombstone has served.
            uses: intents that these commands use up.
            audited: what the audit says of these.
            done: called once it stands or with the reason why not, before this returns: a command that it starts and
                that ends at once has made room when the next statement is judged, and its result shares that one's
                commit.

        Raises:
            JournalUnavailableError: nothing of it stands.
        """
        for report_no, entry in enumerate(entries, self.last_report_no + 1):
            entry.report_no = self.last_report_no = report_no
        told_again = [reports.told_again(entry) for entry in again if not entry.changing]
        for change in (*not_run, *told_again):
            change.number(self._next_report_no())
        batch = Batch(
            accepted=entries,
            changed=not_run,
            told_again=told_again,
            uses=uses,
            audit=audited,
            last_accepted_seq=last_accepted_seq,
            last_report_no=self.last_report_no,
        )

        def publish() -> None:
            self.last_accepted_seq = max(self.last_accepted_seq, last_accepted_seq)
            for seq in consumed:
                self.tombstones.pop(seq, None)
            if uses:
                self.used.add(uses)
            self._outbox.add(entries)
            self.active.update([(entry.seq, entry) for entry in entries])
            self._publish(not_run)
            self._publish(told_again)
            for change in not_run:
                self._finished[change.state].inc()

        await self._commit(batch, publish, done)

    async def bury(self, seq: int, command_id: bytes, audited: AuditEvent) -> None:
        """Journal a tombstone, and what the audit says of it.

        Raises:
            JournalUnavailableError: it does not stand.
        """
        if len(self.tombstones) >= MAX_TOMBSTONES:
            raise JournalUnavailableError("too many cancels wait for their commands")

        def publish() -> None:
            self.tombstones[seq] = command_id

        await self._commit(Batch(tombstones=[(seq, command_id)], audit=[audited]), publish)

    async def raise_floor(self, seq: int, intents_after_ms: int, audited: AuditEvent) -> None:
        """Everything up to `seq`, and every intent issued up to then, lies behind this node, whatever it knows of it;
        `audited` in the same commit.

        Raises:
            JournalUnavailableError: it does not stand.
        """

        def publish() -> None:
            self.last_accepted_seq = max(self.last_accepted_seq, seq)
            self.used.issued_after_ms = max(self.used.issued_after_ms, intents_after_ms)

        batch = Batch(last_accepted_seq=seq, intents_after_ms=intents_after_ms, audit=[audited])
        await self._commit(batch, publish)

    async def finish(self, change: Change, audited: AuditEvent) -> None:
        """Journal an end that is wanted, not one that has happened, and what the audit says of it; see `record`.

        Raises:
            JournalUnavailableError: the command stands where it stood.
        """
        change.number(self._next_report_no())
        batch = Batch(changed=[change], last_report_no=change.report_no, audit=[audited])
        change.entry.changing = True
        try:
            await self._commit(batch, lambda: self._publish([change]))
        finally:
            change.entry.changing = False
        self._count([change])

    def record(self, change: Change) -> None:
        """Take an end that has happened; it is written until it is durable."""
        entry = change.entry
        entry.changing = entry.deferred = True
        self._results.append(change)
        if not self._flushing and self._retry is None:
            self._flushing = True
            self._journal.submit_late(self._flush)

    def start(self, changes: Sequence[Change], done: Done) -> None:
        """Mark commands as RUNNING, then call `done`: only after it without an error may their drivers be called."""
        for change in changes:
            change.number(self._next_report_no())
            change.entry.changing = True

        def committed(error: JournalUnavailableError | None) -> None:
            if error is None:
                self._publish(changes)
                self._wake_soon()
            else:
                for change in changes:
                    change.entry.changing = False
            done(error)

        batch = Batch(changed=changes, last_report_no=self.last_report_no)
        self._journal.submit(batch, committed)

    def acked(self, report_no: int) -> None:
        """The server has everything up to `report_no`; it cannot have what was never published."""
        self._acked_report_no = max(self._acked_report_no, min(report_no, self._outbox.last_report_no))
        self._outbox.acked(self._acked_report_no)
        self._journal.note_acked_nowait(self._acked_report_no)
        self._metrics.report_backlog.set(len(self._outbox))

    def start_over(self) -> None:
        """A new stream is there: give out everything again that is not acknowledged."""
        self._outbox.start_over()

    def take_reports(self, max_count: int, max_bytes: int) -> list[bytes]:
        """The next serialised reports for the newest stream; wakes again once more is in memory."""
        taken = self._outbox.take(max_count, max_bytes)
        if not taken and self._loading is None:
            missing = self._outbox.missing(_LOAD_COUNT)
            if missing:
                self._loading = asyncio.create_task(self._load(missing))
        return taken

    async def find(self, seqs: Sequence[int]) -> dict[int, Entry]:
        """What is known at these seqs.

        Raises:
            JournalUnavailableError: the journal cannot be read.
        """
        known = {seq: self.active[seq] for seq in seqs if seq in self.active}
        unknown = [seq for seq in seqs if seq not in known]
        if unknown:
            known |= await self._journal.query(lambda store: store.find(unknown))
        return known

    def close(self) -> None:
        """Hand the last results to the journal, once, and end."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._results:
            self._flush()
        if self._loading is not None:
            self._loading.cancel()

    def _next_report_no(self) -> int:
        self.last_report_no += 1
        return self.last_report_no

    async def _commit(self, batch: Batch, publish: Callable[[], None], done: Done | None = None) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def committed(error: JournalUnavailableError | None) -> None:
            if error is None:
                publish()  # here, not after the await: later batches must not become visible first
                self._wake_soon()
            if done is not None:
                done(error)
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self._journal.submit(batch, committed)
        await future

    def _publish(self, changes: Sequence[Change]) -> None:
        for change in changes:
            entry = change.entry
            self._outbox.remove(entry)
            change.stands()
            if entry.final_report:
                self.active.pop(entry.seq, None)
        self._outbox.add([change.entry for change in changes])

    def _flush(self) -> None:
        self._flushing = False
        results, self._results = self._results, []
        if not results:
            return
        for change in results:
            change.number(self._next_report_no())
        self._in_flight += len(results)

        def committed(error: JournalUnavailableError | None) -> None:
            self._in_flight -= len(results)
            if error is not None:
                self._results = results + self._results
                self._retry_later(error)
                return
            self._retry_s = FIRST_RETRY_S
            self._publish(results)
            self._count(results)
            self._wake_if_ready()
            self._settled()

        batch = Batch(changed=results, last_report_no=self.last_report_no)
        self._journal.submit(batch, committed)

    def _retry_later(self, error: JournalUnavailableError) -> None:
        if self._retry is None:
            log.error("results_not_journaled", results=len(self._results), error=str(error), retry_s=self._retry_s)
            self._retry = asyncio.create_task(self._retry_after(self._retry_s))
            self._retry_s = min(self._retry_s * 2, MAX_RETRY_S)

    async def _retry_after(self, delay_s: float) -> None:
        await self._clock.sleep(delay_s)
        self._retry = None
        self._flush()

    def _count(self, results: Sequence[Change]) -> None:
        alike: dict[tuple[CommandState.ValueType, int], int] = {}  # those of one statement mostly are
        for change in results:
            end = (change.state, change.ended_at_ms - change.entry.accepted_at_ms)
            alike[end] = alike.get(end, 0) + 1
        for (state, took_ms), times in alike.items():
            self._finished[state].inc(times)
            self._metrics.accept_to_result.observe(max(0, took_ms) / 1000, times)

    def _wake_soon(self) -> None:
        # Two turns: a command that ends at once is reported once, by its result, and not by its start as well.
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._wake_if_ready)

    def _show_sizes(self) -> None:
        self._metrics.report_backlog.set(len(self._outbox))
        self._metrics.journal_rows.set(self._journal.rows)

    def _wake_if_ready(self) -> None:
        self._show_sizes()
        if self._outbox.ready:
            self._wake()

    async def _load(self, numbers: Sequence[int]) -> None:
        try:
            entries = await self._journal.query(lambda store: store.reported(numbers))
        except JournalUnavailableError as error:
            log.error("reports_not_read", error=str(error))
            await self._clock.sleep(MAX_RETRY_S)
        else:
            self._outbox.loaded(numbers, entries)
        finally:
            self._loading = None
        self._wake_if_ready()
