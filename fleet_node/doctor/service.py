"""The whole examination: from this machine's files, along the way, to a welcomed stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fleet.clock import Clock
from fleet.identity import PrivateFileError, load_node_keys
from fleet_node.commands.opening import JournalFacts
from fleet_node.config import Settings
from fleet_node.doctor import folder_checks, gateway_checks, way_checks
from fleet_node.doctor.finding import Finding, Level, fail, ok, skip, warn
from fleet_node.doctor.gateway_checks import Identity, LookOnlyTrust
from fleet_node.drivers.registry import DriverRegistry
from fleet_node.enrollment.folder import FolderLockedError, StateFolder
from fleet_node.enrollment.membership import BundleFile, Membership, MembershipError, load_membership, load_pending
from fleet_node.link.connection import SelfDescription
from fleet_node.status.client import DaemonAwayError, DaemonSilentError, ask
from fleet_node.status.view import what_to_do

_DRIVER_REMEDY = "the node works without it; correct its settings or install it, then restart"


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined.

    Args:
        config: file that the settings came from, for showing.
        place_of: from a setting's full name to where it stands in that file.
        version: of the software.
        boot_id: 16 random bytes.
    """

    settings: Settings
    config: str
    place_of: Callable[[str], str]
    version: str
    boot_id: bytes
    clock: Clock


class Doctor:
    """Looks at everything once. While a daemon runs, what only it can tell is asked of it, and nothing is disturbed.

    Args:
        patient: the node.
    """

    def __init__(self, patient: Patient) -> None:
        self._patient = patient
        self._settings = patient.settings
        self._daemon: dict[str, Any] | None = None
        self._journal: JournalFacts | None = None
        self._about: SelfDescription | None = None

    async def examine(self) -> AsyncIterator[Finding]:
        """Every finding, as it is made."""
        yield ok("config", self._patient.config)
        path = self._settings.state_dir
        if not path.exists():
            yield fail("state folder", f"{path} is not there", "run `fleet-node enroll`, or give the right --state-dir")
            return
        found = folder_checks.check_folder(path)
        yield found
        if found.level is Level.FAIL:
            return
        folder = StateFolder(path)
        yield folder_checks.check_keys(path, self._settings)
        for finding in folder_checks.check_disk(path, self._settings.spool_max_bytes):
            yield finding
        async for finding in self._membership(folder):
            yield finding

    async def _membership(self, folder: StateFolder) -> AsyncIterator[Finding]:
        try:
            membership, pending = load_membership(folder.membership), load_pending(folder.enrollment)
        except MembershipError as error:
            yield fail("membership", str(error), "the message says what to do")
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
        yield folder_checks.check_bundle(folder, membership, self._patient.clock.now_ms())
        yield self._ask_daemon(folder)
        try:
            for finding in self._daemon_or_files(folder, membership):
                yield finding
            async for finding in self._gateways(folder, membership):
                yield finding
        finally:
            folder.unlock()

    def _ask_daemon(self, folder: StateFolder) -> Finding:
        try:
            self._daemon = ask(folder.control_socket, "status")
        except DaemonSilentError as error:
            return fail("daemon", str(error), "restart it; what matters is in the journal")
        except DaemonAwayError:
            try:
                folder.lock()  # nothing may start while the journal and a stream are in use here
            except FolderLockedError as error:
                return fail("daemon", f"{error}; and it answers nothing", "wait for its start or end, or restart it")
            except OSError as error:
                return fail("daemon", f"the lock file cannot be opened: {error.strerror}", "make the folder writable")
            return warn("daemon", "not running", "start it: `fleet-node run`")
        return ok("daemon", f"process {self._daemon['pid']}, version {self._daemon['version']}")

    def _daemon_or_files(self, folder: StateFolder, membership: Membership) -> Iterator[Finding]:
        if self._daemon is not None:
            rows = self._daemon["commands"]["journal_rows"]
            yield ok("journal", f"in use by the daemon, which checked it when it started; {rows} commands")
            for problem in self._daemon["driver_problems"]:
                yield warn("drivers", f"{problem['driver']} ({problem['reason']}): {problem['detail']}", _DRIVER_REMEDY)
            return
        if not folder.is_locked:
            yield skip("journal", "the state folder is in use")
            return
        finding, self._journal = folder_checks.check_journal(folder.journal, membership.node_id)
        yield finding

    async def _drivers(self) -> AsyncIterator[Finding]:
        drivers = DriverRegistry.load(
            self._settings.drivers_enabled, self._settings.driver_tables, place_of=self._patient.place_of
        )
        try:
            self._about = SelfDescription(
                software_version=self._patient.version,
                labels=dict(self._settings.labels),
                drivers=drivers.descriptors(),
                boot_id=self._patient.boot_id,
            )
            if drivers.drivers:
                yield ok("drivers", ", ".join(driver.name for driver in drivers.drivers))
            for problem in drivers.problems:
                yield warn("drivers", f"{problem.driver} ({problem.reason}): {problem.detail}", _DRIVER_REMEDY)
        finally:
            await drivers.close()

    async def _gateways(self, folder: StateFolder, membership: Membership) -> AsyncIterator[Finding]:
        if self._journal is not None:
            async for finding in self._drivers():
                yield finding
        try:
            keys = load_node_keys(folder.path)
            state = BundleFile(
                folder.bundle, cluster_id=membership.cluster_id, authority_key=membership.authority_key
            ).load()
        except (PrivateFileError, MembershipError):
            yield skip("handshake", "keys or trust bundle are not usable")
            return
        who = Identity(membership, keys, LookOnlyTrust(state))
        streamed = False
        for endpoint in self._settings.endpoints or state.endpoints or membership.endpoints:
            passed = True
            async for finding in way_checks.check_way(endpoint, state.tls_ca_der or (membership.tls_ca_der,)):
                passed = passed and finding.level is Level.OK
                yield finding
            if not passed:
                continue
            async for finding in self._meet(endpoint, who, stream=not streamed and self._daemon is None):
                streamed = streamed or finding.check == "stream"
                yield finding
        if self._daemon is not None:
            yield _stream_of(self._daemon)
        elif not streamed:
            yield skip("stream", "no gateway took the handshake, or the journal cannot be used")

    async def _meet(self, endpoint: str, who: Identity, *, stream: bool) -> AsyncIterator[Finding]:
        findings, met = await gateway_checks.meet(endpoint, who, self._patient.clock)
        for finding in findings:
            yield finding
        if met is None:
            return
        try:
            if stream and self._journal is not None and self._about is not None:
                async for finding in gateway_checks.check_stream(
                    met, who, about=self._about, journal=self._journal, clock=self._patient.clock
                ):
                    yield finding
        finally:
            await met.caller.close()


def _stream_of(daemon: dict[str, Any]) -> Finding:
    link = daemon["link"]
    if link["state"] in ("live", "moving"):
        return ok("stream", f"the daemon's is {link['state']}, epoch {link['stream_epoch']}", endpoint=link["endpoint"])
    if link["last_refusal"]:
        detail = f"the daemon's is {link['state']}; {link['last_refusal']}: {link['last_detail']}"
        return fail("stream", detail, what_to_do(link["last_refusal"]))
    return warn("stream", f"the daemon's is {link['state']}", "look again in a few seconds")
