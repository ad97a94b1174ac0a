"""What a node shows while its credentials are being replaced, and what it keeps, whatever the server says."""

import errno
import stat
from pathlib import Path
from typing import Any

import pytest

from fleet import sealing
from fleet.clock import ServerTime
from fleet.errors import Reason
from fleet.identity import NodeKeys, load_node_keys, show_fingerprint, store_node_keys, write_private
from fleet.v1 import gateway_pb2
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import MembershipError, load_membership, save_membership
from fleet_node.link import credentials as module
from fleet_node.link.credentials import Credentials, RotationPinnedError, Shown
from fleet_node.link.key_audit import KeyAudit
from tests.fakes.clock import MockClock
from tests.fakes.gateway import CLUSTER, NODE, FakeInstallation
from tests.unit.fleet_node.link.test_key_audit import Heard

OLD, NEW = "fak1.test", "fak1.new"


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    state = StateFolder(tmp_path / "state")
    save_membership(state.membership, FakeInstallation().membership())
    store_node_keys(state.path, NodeKeys.generate())
    return state


def opened(folder: StateFolder, *, pinned: bool = False, heard: Heard | None = None) -> Credentials:
    """As a process that has just started sees them."""
    membership = load_membership(folder.membership)
    assert membership is not None
    time = ServerTime(MockClock())
    audit = KeyAudit(MockClock())
    audit.audited_by(heard or Heard())
    keys = load_node_keys(folder.path)
    return Credentials(folder, membership, keys, server_time=time, pinned=pinned, audit=audit)


def offer(keys: NodeKeys, api_key: str = NEW) -> gateway_pb2.ServerControl:
    info = sealing.sealing_info(sealing.Purpose.API_KEY, CLUSTER, NODE, keys.fingerprint)
    sealed = sealing.seal(api_key.encode(), keys.sealing_public, info)
    return gateway_pb2.ServerControl(api_key=gateway_pb2.ApiKeyRotation(sealed_api_key=sealed))


def key_of(shown: Shown | None) -> str:
    assert shown is not None
    return shown.membership.api_key.reveal()


async def test_a_new_api_key_is_durable_before_it_is_answered_and_shown_first(folder: StateFolder) -> None:
    held = opened(folder)
    taken = await held.take(offer(load_node_keys(folder.path)))
    assert taken.answer is not None
    assert (taken.answer.rotation_answer.applied, taken.renew) == (True, True)
    assert stat.S_IMODE(folder.rotation.stat().st_mode) == 0o600
    for process in (held, opened(folder)):
        assert key_of(process.first()) == NEW
        assert process.rotating == ["api_key"]


@pytest.mark.parametrize("reason", [Reason.UNKNOWN_CREDENTIAL, Reason.REVOKED])
async def test_a_new_api_key_that_the_server_does_not_know_gives_way_to_the_old_one(
    folder: StateFolder, reason: Reason
) -> None:
    held = opened(folder)
    await held.take(offer(load_node_keys(folder.path)))
    old = held.after_refusal(held.first(), reason)
    assert key_of(old) == OLD
    assert old is not None
    assert held.after_refusal(old, reason) is None
    await held.welcomed(old)
    assert not folder.rotation.exists()
    assert key_of(opened(folder).first()) == OLD


async def test_a_stream_that_was_on_its_way_with_the_old_api_key_does_not_cost_the_new_one(folder: StateFolder) -> None:
    held = opened(folder)
    before = held.first()
    await held.take(offer(load_node_keys(folder.path)))
    await held.welcomed(before)
    assert key_of(held.first()) == NEW
    await held.welcomed(held.first())
    assert not folder.rotation.exists()
    assert key_of(opened(folder).first()) == NEW


async def test_new_keys_are_tried_when_the_old_ones_prove_nothing_and_old_ones_are_kept_until_then(
    folder: StateFolder,
) -> None:
    old = load_node_keys(folder.path)
    statement = await opened(folder).begin(identity=True, sealing_key=True)
    held = opened(folder)  # it was killed
    assert held.first().keys.fingerprint == old.fingerprint
    assert await held.welcomed(held.first()) == [statement], "a stream opened with the old keys asks again"
    new = held.after_refusal(held.first(), Reason.BAD_PROOF)
    assert new is not None
    assert held.after_refusal(new, Reason.BAD_PROOF) is None
    assert load_node_keys(folder.path).fingerprint == old.fingerprint
    assert await held.welcomed(new) == []
    assert load_node_keys(folder.path).fingerprint == new.keys.fingerprint != old.fingerprint
    assert not folder.rotation.exists()


async def test_once_taken_the_new_keys_sign(folder: StateFolder) -> None:
    held = opened(folder)
    await held.begin(identity=True, sealing_key=False)
    mark = held._pending.keys.keys.fingerprint  # type: ignore[union-attr]
    other = gateway_pb2.NodeKeysTaken(taken=True, fingerprint=b"x" * 20)
    assert not (await held.take(gateway_pb2.ServerControl(node_keys=other))).renew, "that is about other keys"
    answer = gateway_pb2.NodeKeysTaken(taken=True, fingerprint=mark)
    assert (await held.take(gateway_pb2.ServerControl(node_keys=answer))).renew
    assert held.preferred_keys.fingerprint == mark
    back = held.after_refusal(held.first(), Reason.BAD_PROOF)
    assert back is not None
    assert back.keys.fingerprint == load_node_keys(folder.path).fingerprint


async def test_refused_keys_are_dropped_and_the_old_ones_stand(folder: StateFolder) -> None:
    held = opened(folder)
    await held.begin(identity=True, sealing_key=True)
    refused = gateway_pb2.NodeKeysTaken(taken=False, reason="STALE")
    await held.take(gateway_pb2.ServerControl(node_keys=refused))
    assert held.rotating == []
    assert not folder.rotation.exists()


@pytest.mark.parametrize("restarts", [True, False])
async def test_keys_that_were_half_written_are_not_dropped_whatever_the_server_says(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch, restarts: bool
) -> None:
    old, held = load_node_keys(folder.path), opened(folder)
    await held.begin(identity=True, sealing_key=True)
    shown = held.after_refusal(held.first(), Reason.BAD_PROOF)
    assert shown is not None
    new = shown.keys
    written: list[str] = []

    def half(path: Path, content: bytes) -> None:
        if written:
            raise OSError(errno.EIO, "Input/output error")
        written.append(path.name)
        write_private(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("fleet.identity.write_private", half)
        await held.welcomed(shown)
    mixed = load_node_keys(folder.path)
    assert mixed.fingerprint not in (old.fingerprint, new.fingerprint)
    process = opened(folder) if restarts else held
    assert process.first().keys.fingerprint == new.fingerprint  # it was met with these
    await process.take(gateway_pb2.ServerControl(node_keys=gateway_pb2.NodeKeysTaken(taken=False, reason="STALE")))
    assert process.rotating == opened(folder).rotating == ["keys"]
    await process.welcomed(process.first())
    assert load_node_keys(folder.path).fingerprint == new.fingerprint
    assert not folder.rotation.exists()


@pytest.mark.parametrize(("identity", "sealing_key"), [(True, False), (False, True), (True, True)])
async def test_whole_keys_are_never_taken_for_half_written_ones(
    folder: StateFolder, identity: bool, sealing_key: bool
) -> None:
    await opened(folder).begin(identity=identity, sealing_key=sealing_key)
    for_now = load_node_keys(folder.path).fingerprint
    held = opened(folder)
    assert held.first().keys.fingerprint == for_now
    await held.take(gateway_pb2.ServerControl(node_keys=gateway_pb2.NodeKeysTaken(taken=False, reason="STALE")))
    assert held.rotating == []


async def test_a_second_order_asks_for_the_same_keys(folder: StateFolder) -> None:
    held = opened(folder)
    order = gateway_pb2.ServerControl(rotate_keys=gateway_pb2.RotateNodeKeys(identity=True))
    assert (await held.take(order)).answer == (await held.take(order)).answer


async def test_a_pinned_fingerprint_stays(folder: StateFolder) -> None:
    held = opened(folder, pinned=True)
    order = gateway_pb2.ServerControl(rotate_keys=gateway_pb2.RotateNodeKeys(identity=True))
    answer = (await held.take(order)).answer
    assert answer is not None
    assert answer.rotation_answer.reason == "PINNED"
    with pytest.raises(RotationPinnedError, match="`fingerprint`"):
        await held.begin(identity=True, sealing_key=True)


async def test_what_is_sealed_to_others_is_refused(folder: StateFolder) -> None:
    answer = (await opened(folder).take(offer(NodeKeys.generate()))).answer
    assert answer is not None
    assert (answer.rotation_answer.applied, answer.rotation_answer.reason) == (False, "CANNOT_OPEN")


@pytest.mark.parametrize("what", ["api_key", "keys"])
async def test_a_full_disk_is_told_and_changes_nothing(
    folder: StateFolder, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "save_rotation", _full)
    held = opened(folder)
    order = gateway_pb2.ServerControl(rotate_keys=gateway_pb2.RotateNodeKeys(sealing=True))
    taken = await held.take(offer(load_node_keys(folder.path)) if what == "api_key" else order)
    assert taken.answer is not None
    assert (taken.answer.rotation_answer.reason, taken.renew) == ("DISK", False)
    assert held.rotating == []
    assert key_of(held.first()) == OLD


async def test_each_key_event_and_refusal_stands_in_the_audit(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    held = opened(folder, heard=heard)
    order = gateway_pb2.ServerControl(rotate_keys=gateway_pb2.RotateNodeKeys(identity=True))
    await held.take(offer(NodeKeys.generate()))
    await held.take(offer(load_node_keys(folder.path)))
    await held.take(order)
    await held.take(order)
    await held.take(gateway_pb2.ServerControl(node_keys=gateway_pb2.NodeKeysTaken(taken=False, reason="STALE")))
    await held.take(order)
    new = held._pending.keys.keys  # type: ignore[union-attr]
    answer = gateway_pb2.NodeKeysTaken(taken=True, fingerprint=new.fingerprint)
    await held.take(gateway_pb2.ServerControl(node_keys=answer))
    await held.welcomed(held.first())
    pinned = opened(folder, pinned=True, heard=heard)
    await pinned.take(order)
    monkeypatch.setattr(module, "save_rotation", _full)
    await pinned.take(offer(load_node_keys(folder.path), "fak1.newer"))
    told = [(kind.value, row["subject"], row.get("reason", "")) for kind, row in heard.rows]
    assert told == [
        ("credential.refused", "api_key", "CANNOT_OPEN"),
        ("credential.stored", "api_key", ""),
        ("credential.stored", "node_keys", ""),
        ("credential.refused", "node_keys", "STALE"),
        ("credential.stored", "node_keys", ""),
        ("credential.in_force", "api_key", ""),
        ("credential.in_force", "node_keys", ""),
        ("credential.refused", "node_keys", "PINNED"),
        ("credential.refused", "api_key", "DISK"),
    ]
    assert heard.rows[6][1]["fingerprint"] == show_fingerprint(new.fingerprint)
    assert all(NEW not in str(row) for _, row in heard.rows)


def _full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "no space left")


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 2}', b'{"format": 1, "identity": "AA=="}', b"[]"])
def test_a_damaged_file_is_told(folder: StateFolder, content: bytes) -> None:
    folder.rotation.write_bytes(content)
    folder.rotation.chmod(0o600)
    with pytest.raises(MembershipError, match="is damaged"):
        opened(folder)
