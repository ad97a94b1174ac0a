"""The state folder and its files: modes, damage, the lock."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fleet import trust
from fleet.envelope import Domain, Signer
from fleet.identity import PrivateFileError
from fleet.v1 import trust_pb2
from fleet_node.enrollment.folder import PRIVATE_FILES, FolderLockedError, StateFolder
from fleet_node.enrollment.membership import (
    BundleFile,
    MembershipError,
    PendingEnrollment,
    load_membership,
    load_pending,
    save_membership,
    save_pending,
)
from fleet_node.enrollment.owner_pin import pinned_owner
from fleet_node.enrollment.rotation_file import load_rotation
from fleet_node.link.people_store import load_people
from tests.fakes.gateway import CLUSTER, FakeInstallation

PENDING = PendingEnrollment(
    "jt_1", "en_1", CLUSTER, ("gw:7443", "[::1]:7443"), b"ca", b"a" * 32, b"", 2.0, (1, 7), {"rack": "7"}
)


def test_a_membership_comes_back_as_it_was_and_is_private(installation: FakeInstallation, tmp_path: Path) -> None:
    path = tmp_path / "membership.json"
    installation.endpoints = ["gw:7443"]
    membership = replace(installation.membership(), owner_pin=b"o" * 32, site="hall-4")
    save_membership(path, membership)
    assert load_membership(path) == membership
    assert path.stat().st_mode & 0o777 == 0o600
    assert "fak1" not in repr(membership)


def test_a_pending_enrollment_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "enrollment.json"
    save_pending(path, PENDING)
    assert load_pending(path) == PENDING


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    assert load_membership(tmp_path / "m") is None
    assert load_pending(tmp_path / "e") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}', '{"format": 1}', "\x00\xff"])
def test_a_damaged_file_says_what_to_do(tmp_path: Path, content: str) -> None:
    path = tmp_path / "membership.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(MembershipError, match="restore the state folder, or enroll again"):
        load_membership(path)


def test_a_field_of_another_type_is_damage(installation: FakeInstallation, tmp_path: Path) -> None:
    path = tmp_path / "membership.json"
    installation.endpoints = ["gw:7443"]
    save_membership(path, installation.membership())
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"authority_key": "not base64!"}))
    with pytest.raises(MembershipError):
        load_membership(path)


def test_a_file_that_others_can_read_is_refused(installation: FakeInstallation, tmp_path: Path) -> None:
    path = tmp_path / "membership.json"
    installation.endpoints = ["gw:7443"]
    save_membership(path, installation.membership())
    path.chmod(0o644)
    with pytest.raises(MembershipError) as caught:
        load_membership(path)
    assert str(caught.value) == f"{path} is open to other users: run `chmod 600 {path}`"


def test_a_bundle_is_verified_when_it_is_read(installation: FakeInstallation, tmp_path: Path) -> None:
    file = BundleFile(tmp_path / "bundle.bin", cluster_id=CLUSTER, authority_key=installation.authority.public_key)
    with pytest.raises(MembershipError, match="holds no trust bundle of the pinned authority"):
        file.load()
    file.save(installation.trust_state(3))
    assert file.load().number == 3
    stranger = FakeInstallation()
    file.save(stranger.trust_state(4))
    with pytest.raises(MembershipError, match="holds no trust bundle of the pinned authority"):
        file.load()


def test_a_revoked_key_is_remembered_when_a_later_bundle_is_all_that_is_kept(
    installation: FakeInstallation, tmp_path: Path
) -> None:
    file = BundleFile(tmp_path / "bundle.bin", cluster_id=CLUSTER, authority_key=installation.authority.public_key)
    key = b"k" * 16
    file.save(dataclasses.replace(installation.trust_state(3), revoked=frozenset({key})))
    file.save(trust.advance(file.load(), installation.bundle(4)))
    assert file.load().number == 4
    assert file.load().revoked == {key}


def test_a_bundle_of_later_authorities_is_verified_through_every_one_of_them(
    installation: FakeInstallation, tmp_path: Path
) -> None:
    path, pin = tmp_path / "bundle.bin", installation.authority.public_key
    authorities = [installation.authority, Signer.generate(), Signer.generate()]
    file = BundleFile(path, cluster_id=CLUSTER, authority_key=pin)
    file.save(installation.trust_state(3))
    state = file.load()
    offers = [
        [installation.bundle(4), succession(installation, 2, 1, authorities[1], authorities[:2])],  # two steps at once
        [succession(installation, 2, 2, authorities[1], authorities[1:2])],
        [succession(installation, 2, 3, authorities[1], authorities[1:2])],
        [succession(installation, 3, 7, authorities[2], authorities[1:])],
    ]
    sizes = []
    for offer in offers:
        taken = list(trust.steps(state, offer))
        file.save(*taken)
        state = BundleFile(path, cluster_id=CLUSTER, authority_key=pin).load()  # as after a restart
        assert state == taken[-1]
        sizes.append(len(trust_pb2.HeldTrust.FromString(path.read_bytes()).links))
    assert sizes == [2, 3, 3, 4]  # the step of each authority, and the newest
    with pytest.raises(MembershipError):
        BundleFile(path, cluster_id=CLUSTER, authority_key=authorities[1].public_key).load()
    chain = trust_pb2.HeldTrust.FromString(path.read_bytes())
    del chain.links[1]
    path.write_bytes(chain.SerializeToString())
    with pytest.raises(MembershipError, match="holds no trust bundle of the pinned authority"):
        file.load()


def succession(
    installation: FakeInstallation, generation: int, number: int, authority: Signer, signers: list[Signer]
) -> trust_pb2.Signed:
    """A bundle of a later authority."""
    statement = trust_pb2.TrustBundleStatement.FromString(installation.bundle(number).statement)
    statement.generation, statement.authority_key = generation, authority.public_key
    del statement.command_keys[:]
    signed = signers[0].sign(Domain.TRUST_BUNDLE, statement.SerializeToString())
    for signer in signers[1:]:
        signer.add(signed, Domain.TRUST_BUNDLE)
    return signed


def test_a_state_folder_that_others_can_open_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.mkdir(mode=0o755)
    with pytest.raises(PrivateFileError, match="chmod 700"):
        StateFolder(path)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("")
    with pytest.raises(PrivateFileError, match="cannot use"):
        StateFolder(path)


def test_one_process_a_state_folder(folder: StateFolder) -> None:
    program = (
        "import sys; from pathlib import Path; from fleet_node.enrollment.folder import StateFolder\n"
        "StateFolder(Path(sys.argv[1])).lock(); print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(FolderLockedError, match=f"in use by process {holder.pid}"):
            folder.lock()
        assert not folder.is_locked
        holder.kill()
        holder.wait()
        folder.lock()  # the lock ends with its process, whatever ended that
        assert folder.is_locked
    finally:
        holder.kill()
        holder.communicate()
        folder.unlock()


def test_copies_of_a_journal_that_a_killed_process_left_are_cleared_away(folder: StateFolder) -> None:
    folder.new_journal_copy().write_bytes(b"arguments of commands")
    folder.journal.write_bytes(b"journal")
    folder.lock()
    assert [path.name for path in folder.path.iterdir() if "journal" in path.name] == ["journal.db"]
    folder.unlock()


@pytest.mark.parametrize(
    "load",
    [
        load_pending,
        load_rotation,
        lambda path: load_people(path, cluster_id=CLUSTER, pin=b""),
        lambda path: pinned_owner(path, FakeInstallation().membership()),
        lambda path: BundleFile(path, cluster_id=CLUSTER, authority_key=b"k" * 32).load(),
    ],
    ids=["enrollment.json", "rotation.json", "people.json", "owner.pin", "bundle.bin"],
)
def test_a_file_that_is_open_is_repaired_and_not_thrown_away(tmp_path: Path, load: Callable[[Path], object]) -> None:
    path = tmp_path / "file"
    path.write_text("{}")
    path.chmod(0o644)
    with pytest.raises(MembershipError) as caught:
        load(path)
    assert str(caught.value) == f"{path} is open to other users: run `chmod 600 {path}`"


def test_every_path_of_the_folder_is_a_known_file(folder: StateFolder) -> None:
    paths = {value for name in vars(StateFolder) if isinstance(value := getattr(folder, name), Path)}
    assert {path.name for path in paths} == set(PRIVATE_FILES) - {"identity.key", "sealing.key", "lock"} | {
        "control.sock"
    }
