"""Which intents a node remembers: used, refused by the disk, restored and reopened in any order, an intent that could
still be good is never forgotten (docs/protocol.md, "Intents")."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fleet.v1.command_pb2 import CommandState
from fleet_node.commands.entry import Entry
from fleet_node.commands.journal_file import ensure_journal
from fleet_node.commands.store import Batch, JournalStore, JournalUnavailableError
from fleet_node.commands.used_intents import Use, UsedIntents

NODE = "node-1"


class IntentsMachine(RuleBasedStateMachine):
    """The model: every use that was ever made."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name) / "journal.db"
        ensure_journal(self._path, NODE)
        self._store = JournalStore(self._path, NODE)
        self._memory = UsedIntents()  # as the ledger keeps it
        self._made: list[Use] = []
        self._issued_after_ms = 0

    @rule(
        times=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 30)), min_size=1, max_size=4),
        full=st.booleans(),
    )
    def use(self, times: list[tuple[int, int]], full: bool) -> None:
        first = len(self._made) + 1
        uses = [
            Use(seq.to_bytes(16, "big"), seq, issued_at_ms, issued_at_ms + lifetime_ms)
            for seq, (issued_at_ms, lifetime_ms) in enumerate(times, first)
        ]
        if self._apply(_batch(uses), full):
            self._memory.add(uses)
            self._made += uses

    @precondition(lambda self: list(self._memory))
    @rule(choice=st.integers(0, 99))
    def use_again(self, choice: int) -> None:
        """What judging keeps out fails in the journal as well: nothing of its commit stands."""
        known = list(self._memory)
        again = known[choice % len(known)]
        with pytest.raises(JournalUnavailableError):
            self._store.apply([_batch([Use(again.intent_id, 10_000, 1, 10**6)])], 0)
        assert not self._store.find([10_000])

    @rule(issued_after_ms=st.integers(1, 60), full=st.booleans())
    def restore_or_adopt(self, issued_after_ms: int, full: bool) -> None:
        if self._apply(Batch(intents_after_ms=issued_after_ms), full):
            self._memory.issued_after_ms = max(self._memory.issued_after_ms, issued_after_ms)
            self._issued_after_ms = max(self._issued_after_ms, issued_after_ms)

    @rule()
    def reopen(self) -> None:
        self._store.close()
        self._store = JournalStore(self._path, NODE)
        self._memory = self._store.recover().used

    @invariant()
    def what_could_still_be_good_is_remembered(self) -> None:
        latest_ms = max([use.issued_at_ms for use in self._made], default=0)
        assert {use.seq for use in self._memory} == {use.seq for use in self._made if use.not_after_ms > latest_ms}
        for memory in (self._memory, self._store.recover().used):
            assert (memory.latest_signed_ms, memory.issued_after_ms) == (latest_ms, self._issued_after_ms)
            for use in self._made:
                # Judged at the latest of all times, an intent that was forgotten has ended.
                assert use.intent_id in memory or memory.latest_signed_ms >= use.not_after_ms
            assert all(memory.of(use.seq) == use for use in memory)

    def teardown(self) -> None:
        self._store.close()
        self._folder.cleanup()

    def _apply(self, batch: Batch, full: bool) -> bool:
        self._store.connection.execute(f"PRAGMA query_only = {int(full)}")
        try:
            self._store.apply([batch], 0)
        except JournalUnavailableError:
            assert full
            return False
        finally:
            self._store.connection.execute("PRAGMA query_only = 0")
        assert not full
        return True


def _batch(uses: list[Use]) -> Batch:
    accepted = [
        Entry(use.seq, use.intent_id, b"", "ada", "a.b", b"{}", 1, 1, CommandState.COMMAND_STATE_ACCEPTED, use.seq)
        for use in uses
    ]
    return Batch(accepted=accepted, uses=uses, last_accepted_seq=uses[-1].seq, last_report_no=uses[-1].seq)


TestIntents = IntentsMachine.TestCase
TestIntents.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
