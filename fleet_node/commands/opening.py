"""How the program gets at the journal: makes it, opens it, looks at it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fleet.node_audit import NodeAuditKind
from fleet_node.commands import audit_rows, reports
from fleet_node.commands.audit_signer import AuditSigner
from fleet_node.commands.journal import Journal
from fleet_node.commands.journal_copy import Between, nothing_between
from fleet_node.commands.journal_file import JournalDamagedError, ensure_journal
from fleet_node.commands.store import Batch, JournalStore, JournalUnavailableError

if TYPE_CHECKING:
    from fleet.metrics import Histogram

__all__ = [
    "JournalDamagedError",
    "JournalFacts",
    "JournalUnavailableError",
    "copy_journal",
    "ensure_journal",
    "inspect_journal",
    "latest_used_intent_ms",
    "note_restored",
    "open_journal",
]


@dataclass(frozen=True, slots=True)
class JournalFacts:
    """What a journal holds.

    Args:
        rows: commands remembered.
        unfinished: accepted or running ones.
        unacknowledged: reports that the server has not acknowledged.
    """

    rows: int
    unfinished: int
    unacknowledged: int


def open_journal(path: Path, node_id: str, *, commit_duration: Histogram, signer: AuditSigner | None = None) -> Journal:
    """The node's journal, checked and not yet started.

    Args:
        signer: signs its audit.

    Raises:
        JournalDamagedError: it cannot be used; says what to do.
    """
    store = JournalStore(path, node_id)
    store.audit.signer = signer
    return Journal(store, commit_duration=commit_duration)


def copy_journal(path: Path, node_id: str, to: Path, between: Between = nothing_between) -> None:
    """Copy a journal into a new file. Only while no daemon runs: the journal has one process.

    Args:
        between: told how many bytes are done, and of how many.

    Raises:
        JournalDamagedError: it cannot be used.
        JournalUnavailableError: it cannot be read now, or the copy not be written.
    """
    store = JournalStore(path, node_id)
    try:
        store.copy_to(to, between)
    finally:
        store.close()


def note_restored(path: Path, node_id: str, *, made_at_ms: int, intents_after_ms: int, now_ms: int) -> None:
    """Write into a journal that was restored that it was, for the audit, and that intents issued until then count for
    nothing: it may have forgotten that they were used. What has not ended in it is INTERRUPTED: the machine that was
    backed up may have run it since.

    Args:
        made_at_ms: when the backup was made, Unix milliseconds.
        intents_after_ms: see `Batch`.
        now_ms: Unix milliseconds.

    Raises:
        JournalDamagedError: it cannot be used.
        JournalUnavailableError: it cannot be written.
    """
    store = JournalStore(path, node_id)
    try:
        restored = audit_rows.event(NodeAuditKind.JOURNAL_RESTORED, now_ms, {"made_at_ms": made_at_ms})
        recovered = store.recover()
        unknown = [reports.restored(entry, now_ms) for entry in recovered.unfinished]
        for report_no, change in enumerate(unknown, recovered.last_report_no + 1):
            change.number(report_no)
        batch = Batch(
            changed=unknown,
            intents_after_ms=intents_after_ms,
            last_report_no=recovered.last_report_no + len(unknown),
            audit=[restored],
        )
        store.apply([batch], recovered.acked_report_no)
    finally:
        store.close()


def latest_used_intent_ms(path: Path, node_id: str) -> int:
    """The latest time of issue of any intent that was used, Unix milliseconds; 0 when none was. Only while no daemon
    runs.

    Raises:
        JournalDamagedError: it cannot be used.
        JournalUnavailableError: it cannot be read now.
    """
    store = JournalStore(path, node_id)
    try:
        return store.recover().used.latest_signed_ms
    finally:
        store.close()


def inspect_journal(path: Path, node_id: str) -> JournalFacts:
    """Check the whole file and tell what it holds. Only while no daemon runs: the journal has one process.

    Raises:
        JournalDamagedError: it cannot be used.
        JournalUnavailableError: it cannot be read now.
    """
    store = JournalStore(path, node_id)
    try:
        found = store.recover()
        return JournalFacts(
            rows=store.rows,
            unfinished=len(found.unfinished),
            unacknowledged=len(found.unacknowledged),
        )
    finally:
        store.close()
