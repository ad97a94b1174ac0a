"""What an archive holds is what one moment of the node saw, and a node that is restored from it uses nothing twice."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet.clock import SystemClock
from fleet.identity import NodeKeys, load_node_keys, read_private, store_node_keys, write_private
from fleet.intents import IntentVerdict, Judgement, judge_intent
from fleet.people import CLOCK_SLACK_MS
from fleet.secrets import Secret
from fleet_node.backup import service
from fleet_node.backup.archive import unseal
from fleet_node.commands.opening import ensure_journal
from fleet_node.commands.store import Batch, JournalStore
from fleet_node.commands.used_intents import Use
from fleet_node.enrollment.folder import PRIVATE_FILES, StateFolder
from tests.fakes.clock import MockClock
from tests.properties.persons import ADA, BEN, HOUR_MS, NOW_MS, ORDER, intent, known, signed_by

CHEAP = 2
NODE = "node-1"
PASSPHRASE = Secret("correct horse battery")
OLD, NEW = NodeKeys.generate(), NodeKeys.generate()


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "state")
    store_node_keys(folder.path, OLD)
    write_private(folder.membership, b"old api_key")
    write_private(folder.bundle, b"bundle")
    write_private(folder.ratchet, b"old ratchet")
    write_private(folder.rotation, b"new keys")
    ensure_journal(folder.journal, NODE)
    return folder


def back_up(folder: StateFolder, meanwhile: Callable[[], None] = lambda: None) -> dict[str, bytes]:
    """The files of an archive; `meanwhile` happens each time that the journal is read."""

    def reading() -> bytes:
        content = folder.journal.read_bytes()
        meanwhile()
        return content

    archive = folder.path.parent / "node.backup"
    service.back_up(folder, archive, PASSPHRASE, node_id=NODE, read_journal=reading, clock=SystemClock(), cost=CHEAP)
    return unseal(archive.read_bytes(), PASSPHRASE, cost=CHEAP)


def settle(folder: StateFolder) -> None:
    """What a daemon does when the server was met with the new keys."""
    store_node_keys(folder.path, NEW)
    folder.rotation.unlink(missing_ok=True)


def test_every_file_of_a_node_is_in_its_backup_or_left_out_on_purpose() -> None:
    left_out = {"enrollment.json", "client.pem", "probe.pem", "spool.db", "lock"}
    assert {*service.NEEDED, *service.OPTIONAL} | left_out == set(PRIVATE_FILES)


NAMES = ["identity.key", "sealing.key", "membership.json", "bundle.bin", "ratchet.bin", "rotation.json"]


@pytest.mark.parametrize("name", NAMES)
def test_a_rotation_that_ends_while_files_are_read_tears_nothing(
    folder: StateFolder, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def racing(path: Path) -> bytes:
        content = read_private(path)
        if path.name == name and folder.rotation.exists():
            settle(folder)
        return content

    monkeypatch.setattr(service, "read_private", racing)
    files = back_up(folder)
    assert (files["identity.key"], files["sealing.key"]) == (
        NEW.identity.private_bytes(),
        NEW.sealing.private_bytes_raw(),
    )
    assert "rotation.json" not in files


def test_what_is_replaced_while_the_journal_is_read_is_in_the_archive(folder: StateFolder) -> None:
    def meanwhile() -> None:
        settle(folder)
        write_private(folder.membership, b"new api_key")
        write_private(folder.ratchet, b"new ratchet")

    files = back_up(folder, meanwhile)
    assert (files["membership.json"], files["ratchet.bin"]) == (b"new api_key", b"new ratchet")
    assert files["identity.key"] == load_node_keys(folder.path).identity.private_bytes()


def test_a_journal_is_never_older_than_the_ratchet_beside_it(folder: StateFolder) -> None:
    readings: Iterator[int] = iter(range(10))
    taken = []

    def meanwhile() -> None:
        number = next(readings)
        taken.append(number)
        if number < 2:
            write_private(folder.ratchet, b"ratchet %d" % number)

    assert back_up(folder, meanwhile)["ratchet.bin"] == b"ratchet 1"
    assert taken == [0, 1, 2]  # and the journal is the one that was read after it


def test_a_node_that_does_not_hold_still_is_not_backed_up(folder: StateFolder) -> None:
    changes = iter(range(100))
    with pytest.raises(service.BackupError, match="try again"):
        back_up(folder, lambda: write_private(folder.ratchet, b"%d" % next(changes)))
    assert not (folder.path.parent / "node.backup").exists()


def used(folder: StateFolder, at_ms: int, *, issued_at_ms: int) -> Judgement:
    """What becomes of an intent that is used on the old machine after the backup, and then comes to the restored one.

    The backup is made at NOW_MS, and restored by a clock that says `at_ms`.
    """
    archive, restored = folder.path.parent / "used.backup", folder.path.parent / "restored"
    service.back_up(
        folder,
        archive,
        PASSPHRASE,
        node_id=NODE,
        read_journal=folder.journal.read_bytes,
        clock=MockClock(NOW_MS),
        cost=CHEAP,
    )
    service.restore(archive, restored, PASSPHRASE, clock=MockClock(at_ms), cost=CHEAP)
    store = JournalStore(restored / "journal.db", NODE)
    intents = store.recover().used
    store.close()
    wish = intent(issued_at_ms=issued_at_ms, not_after_ms=issued_at_ms + HOUR_MS)
    return judge_intent(
        known(),
        signed_by(ADA, BEN, statement=wish),
        ORDER,
        now_ms=max(issued_at_ms, at_ms) + 120_000,
        consumed=intents,
        issued_after_ms=intents.issued_after_ms,
    )


MINUTE_MS = 60_000


@pytest.mark.parametrize(
    ("issued_ms", "verdict"),
    [
        (1000, IntentVerdict.INTENT_BEFORE_RESTORE),
        (5 * MINUTE_MS, IntentVerdict.INTENT_BEFORE_RESTORE),
        (2 * MINUTE_MS + CLOCK_SLACK_MS, IntentVerdict.INTENT_BEFORE_RESTORE),
        (2 * MINUTE_MS + CLOCK_SLACK_MS + 1, IntentVerdict.PASS),
    ],
    ids=["before", "by a clock ahead", "by one as far ahead as may be", "after"],
)
def test_what_was_used_since_the_backup_is_used_no_second_time(
    folder: StateFolder, issued_ms: int, verdict: IntentVerdict
) -> None:
    assert used(folder, NOW_MS + 2 * MINUTE_MS, issued_at_ms=NOW_MS + issued_ms).verdict is verdict


def test_by_a_clock_that_is_behind_the_backup_nothing_is_restored(folder: StateFolder) -> None:
    with pytest.raises(service.BackupError, match="set the clock"):
        used(folder, 1000, issued_at_ms=NOW_MS)
    assert not (folder.path.parent / "restored").exists()


@pytest.mark.parametrize("where", ["people", "journal"])
@pytest.mark.parametrize("ahead_ms", [CLOCK_SLACK_MS, CLOCK_SLACK_MS + 1])
def test_nor_by_one_that_is_behind_what_people_had_signed(folder: StateFolder, where: str, ahead_ms: int) -> None:
    signed_ms = NOW_MS + ahead_ms
    if where == "people":
        kept = {"format": 1, "owner_pin": "", "latest_signed_ms": signed_ms, "statements": ""}
        write_private(folder.people, json.dumps(kept).encode())
    else:
        store = JournalStore(folder.journal, NODE)
        store.apply([Batch(uses=[Use(b"i" * 16, 1, signed_ms, signed_ms + HOUR_MS)])], 0)
        store.close()
    if ahead_ms > CLOCK_SLACK_MS:
        with pytest.raises(service.BackupError, match="set the clock"):
            used(folder, NOW_MS, issued_at_ms=NOW_MS)
    else:
        judged = used(folder, NOW_MS, issued_at_ms=signed_ms + CLOCK_SLACK_MS)
        assert judged.verdict is IntentVerdict.INTENT_BEFORE_RESTORE
