"""The whole examination: from this machine's files, along the way, to a stream that passes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fleet.clock import Clock, ServerTime
from fleet.identity import PrivateFileError, load_node_keys
from fleet_node.config import Settings
from fleet_node.doctor import folder_checks, gateway_checks, route_checks, way_checks
from fleet_node.doctor.finding import Finding, Level, fail, ok, skip, warn
from fleet_node.doctor.gateway_checks import Identity, LookOnlyTrust
from fleet_node.drivers.protected import Protected, protected_of
from fleet_node.drivers.registry import DriverRegistry
from fleet_node.enrollment.folder import FolderLockedError, StateFolder
from fleet_node.enrollment.membership import BundleFile, Membership, MembershipError, load_membership, load_pending
from fleet_node.link.credentials import Credentials
from fleet_node.status.client import DaemonAwayError, DaemonSilentError, ask
from fleet_node.status.people import known_people
from fleet_node.status.view import what_to_do

_SEE_BELOW = "the lines about each gateway below go the same way: begin at the first that fails; if none does, wait"
_DRIVER_REMEDY = "the node works without it; correct its settings or install it, then restart"


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined.

    Args:
        config: file that the settings came from, for showing.
        place_of: from a setting's full name to where it stands in that file.
    """

    settings: Settings
    config: str
    place_of: Callable[[str], str]
    clock: Clock


class Doctor:
    """Looks at everything once and disturbs nothing: a running daemon is asked for what only it can tell, and no stream
    is claimed.

    Args:
        patient: the node.
    """

    def __init__(self, patient: Patient) -> None:
        self._patient = patient
        self._settings = patient.settings

    async def examine(self) -> AsyncIterator[Finding]:
        """Every finding, as it is made."""
        yield ok("config", self._patient.config)
        path = self._settings.state_dir
        try:
            there = path.exists()
        except OSError as error:
            detail = f"{path} cannot be looked at: {error.strerror}"
            yield fail("state folder", detail, "run this as the user that the node runs as, or correct --state-dir")
            return
        if not there:
            yield fail("state folder", f"{path} is not there", "run `fleet-node enroll`, or give the right --state-dir")
            return
        found = folder_checks.check_folder(path)
        yield found
        if found.level is Level.FAIL:
            return
        yield folder_checks.check_keys(path, self._settings)
        for finding in folder_checks.check_disk(path, self._settings.spool_max_bytes):
            yield finding
        async for finding in self._membership(StateFolder(path)):
            yield finding

    async def _membership(self, folder: StateFolder) -> AsyncIterator[Finding]:
        try:
            membership, pending = load_membership(folder.membership), load_pending(folder.enrollment)
        except MembershipError as error:
            remedy = "put the state folder back from a backup, or enroll again with an empty one and a new join token"
            yield fail("membership", str(error), remedy)
            return
        if membership is not None:
            async for finding in self._member(folder, membership):
                yield finding
        elif pending is not None:
            yield warn("membership", "an operator has not decided yet", "`fleet-node enroll` goes on waiting")
            for endpoint in pending.endpoints:
                async for finding in way_checks.check_way(endpoint, (pending.tls_ca_der,)):
                    yield finding
        else:
            yield fail("membership", "this node is not enrolled", "run `fleet-node enroll` with a join token")

    async def _member(self, folder: StateFolder, membership: Membership) -> AsyncIterator[Finding]:
        yield ok("membership", f"{membership.name} ({membership.node_id}) in cluster {membership.cluster_id}")
        yield folder_checks.check_rotation(folder)
        yield folder_checks.check_bundle(folder, membership, self._patient.clock.now_ms())
        for finding in route_checks.check_settings(self._settings):
            yield finding
        protected = Protected(self._settings.protected, ())  # as far as is known without drivers
        try:
            said = ask(folder.control_socket, "status")
            for finding in _of_daemon(said):
                yield finding
            async for finding in route_checks.check_daemon(self._settings, said):
                yield finding
            protected = _protected(said, protected)
        except DaemonSilentError as error:
            yield fail("daemon", str(error), "restart it; what matters is in the journal")
            yield skip("journal", "the state folder is in use")
        except DaemonAwayError:
            for finding in self._without_daemon(folder, membership.node_id):
                yield finding
            drivers = self._load_drivers()
            for finding in _of_drivers(drivers):
                yield finding
            policy = _policy(folder, membership)
            protected = protected_of(drivers.actions, self._settings.protected, policy)
            await drivers.close()
        for finding in folder_checks.check_protected(protected):
            yield finding
        yield folder_checks.check_owner(folder, membership, self._patient.clock.now_ms(), protected)
        async for finding in self._gateways(folder, membership):
            yield finding

    def _without_daemon(self, folder: StateFolder, node_id: str) -> Iterator[Finding]:
        try:
            folder.lock()  # nothing may start while the journal is read here
        except FolderLockedError as error:
            yield fail("daemon", f"{error}; and it answers nothing", "wait for its start or end, or restart it")
            yield skip("journal", "the state folder is in use")
            return
        except OSError as error:
            yield fail("daemon", f"the lock file cannot be opened: {error.strerror}", "make the folder writable")
            yield skip("journal", "the state folder cannot be written")
            return
        try:
            yield warn("daemon", "not running", "start it: `fleet-node run`")
            yield folder_checks.check_journal(folder.journal, node_id)
        finally:
            folder.unlock()

    def _load_drivers(self) -> DriverRegistry:
        return DriverRegistry.load(
            self._settings.drivers_enabled, self._settings.driver_tables, place_of=self._patient.place_of
        )

    async def _gateways(self, folder: StateFolder, membership: Membership) -> AsyncIterator[Finding]:
        try:
            keys = load_node_keys(folder.path)
            state = BundleFile(
                folder.bundle, cluster_id=membership.cluster_id, authority_key=membership.authority_key
            ).load()
            credentials = Credentials(folder, membership, keys, server_time=ServerTime(self._patient.clock))
        except (PrivateFileError, MembershipError):
            yield skip("handshake", "keys, new credentials or trust bundle are not usable")
            return
        who = Identity(credentials, LookOnlyTrust(state))
        for endpoint in self._settings.endpoints or state.endpoints or membership.endpoints:
            passed = True
            async for finding in way_checks.check_way(endpoint, state.tls_ca_der or (membership.tls_ca_der,)):
                passed = passed and finding.level is Level.OK
                yield finding
            if passed:
                async for finding in self._meet(endpoint, who):
                    yield finding

    async def _meet(self, endpoint: str, who: Identity) -> AsyncIterator[Finding]:
        findings, met = await gateway_checks.meet(endpoint, who, self._patient.clock)
        for finding in findings:
            yield finding
        if met is None:
            return
        try:
            yield await gateway_checks.check_stream(met)
        finally:
            await met.caller.close()


def _of_drivers(drivers: DriverRegistry) -> Iterator[Finding]:
    if drivers.drivers:
        yield ok("drivers", ", ".join(driver.name for driver in drivers.drivers))
    for problem in drivers.problems:
        yield warn("drivers", f"{problem.driver} ({problem.reason}): {problem.detail}", _DRIVER_REMEDY)


def _policy(folder: StateFolder, membership: Membership) -> Callable[[str], bool]:
    try:
        return known_people(folder, membership).protects
    except MembershipError:  # the owner's finding tells
        return lambda action: False


def _protected(said: Mapping[str, Any], otherwise: Protected) -> Protected:
    try:
        return Protected(tuple(said["protected"]["actions"]), tuple(said["protected"]["unmatched"]))
    except (KeyError, TypeError):
        return otherwise


def _of_daemon(said: Mapping[str, Any]) -> Iterator[Finding]:
    """What the daemon says of itself; it may be of another version than this program."""
    try:
        findings = list(_told(said))
    except (KeyError, TypeError):
        yield warn("daemon", "it answers as another version does", "restart it: an older fleet-node still runs")
    else:
        yield from findings


def _told(said: Mapping[str, Any]) -> Iterator[Finding]:
    yield ok("daemon", f"process {said['pid']}, version {said['version']}")
    yield _its_stream(said["link"])
    if said["commands"]["drained"]:
        yield warn("drained", "the server holds this node drained", "`fleetctl resume node` lets it work again")
    rows = said["commands"]["journal_rows"]
    yield ok("journal", f"in use by the daemon, which checked it when it started; {rows} commands")
    for problem in said["driver_problems"]:
        yield warn("drivers", f"{problem['driver']} ({problem['reason']}): {problem['detail']}", _DRIVER_REMEDY)


def _its_stream(link: Mapping[str, Any]) -> Finding:
    if link["state"] in ("live", "moving"):
        detail = f"{link['state']}, epoch {link['stream_epoch']}"
        return ok("daemon's stream", detail, endpoint=link["endpoint"])
    if link["last_refusal"]:
        detail = f"{link['state']}; {link['last_refusal']}: {link['last_detail']}"
        # Where a person would be sent to the doctor, the doctor goes the daemon's way itself.
        below = link["last_refusal"] in gateway_checks.REMEDIES
        return fail("daemon's stream", detail, _SEE_BELOW if below else what_to_do(link["last_refusal"]))
    return warn("daemon's stream", str(link["state"]), "look again in a few seconds")
