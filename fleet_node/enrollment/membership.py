"""What a node is a member of, kept in two small private files that are replaced atomically."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from fleet import trust
from fleet.identity import PrivateFileError, read_private, write_private
from fleet.secrets import Secret
from fleet.trust import TrustState
from fleet.v1 import trust_pb2

_FORMAT = 1


class MembershipError(Exception):
    """A state file is missing or damaged; the message says what to do."""


@dataclass(frozen=True, slots=True)
class PendingEnrollment:
    """An enrollment that waits for an operator: what the join token pinned, under which id to poll, and what the node
    said of itself (`labels`).

    `bundle_version` is the (generation, number) that was in force when the token was made: no older bundle tells this
    node of a TLS CA.
    """

    token_id: str
    enrollment_id: str
    cluster_id: str
    endpoints: tuple[str, ...]
    tls_ca_der: bytes
    authority_key: bytes
    owner_pin: bytes
    poll_interval_s: float
    bundle_version: tuple[int, int] = (0, 0)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Membership:
    """A node's place in its cluster. `labels` are those of `enroll`; the config's go before them."""

    cluster_id: str
    node_id: str
    name: str
    site: str
    endpoints: tuple[str, ...]
    tls_ca_der: bytes
    authority_key: bytes
    owner_pin: bytes
    api_key: Secret[str]
    telemetry_interval_s: float
    max_in_flight: int
    labels: Mapping[str, str] = field(default_factory=dict)


def save_pending(path: Path, pending: PendingEnrollment) -> None:
    """Store an enrollment under way, so that a restart resumes the poll."""
    _write(
        path,
        {
            "token_id": pending.token_id,
            "enrollment_id": pending.enrollment_id,
            "cluster_id": pending.cluster_id,
            "endpoints": list(pending.endpoints),
            "tls_ca_der": _text(pending.tls_ca_der),
            "authority_key": _text(pending.authority_key),
            "owner_pin": _text(pending.owner_pin),
            "poll_interval_s": pending.poll_interval_s,
            "bundle_version": list(pending.bundle_version),
            "labels": dict(pending.labels),
        },
    )


def load_pending(path: Path) -> PendingEnrollment | None:
    """The enrollment under way, if there is one.

    Raises:
        MembershipError: the file is damaged.
    """
    found = _read(path)
    if found is None:
        return None
    try:
        return PendingEnrollment(
            token_id=found["token_id"],
            enrollment_id=found["enrollment_id"],
            cluster_id=found["cluster_id"],
            endpoints=tuple(found["endpoints"]),
            tls_ca_der=_raw(found["tls_ca_der"]),
            authority_key=_raw(found["authority_key"]),
            owner_pin=_raw(found["owner_pin"]),
            poll_interval_s=float(found["poll_interval_s"]),
            bundle_version=_version(found["bundle_version"]),
            labels={str(key): str(value) for key, value in found["labels"].items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path) from error


def _version(found: Any) -> tuple[int, int]:
    generation, number = found
    return int(generation), int(number)


def save_membership(path: Path, membership: Membership) -> None:
    """Store the membership durably."""
    _write(
        path,
        {
            "cluster_id": membership.cluster_id,
            "node_id": membership.node_id,
            "name": membership.name,
            "site": membership.site,
            "endpoints": list(membership.endpoints),
            "tls_ca_der": _text(membership.tls_ca_der),
            "authority_key": _text(membership.authority_key),
            "owner_pin": _text(membership.owner_pin),
            "api_key": membership.api_key.reveal(),
            "telemetry_interval_s": membership.telemetry_interval_s,
            "max_in_flight": membership.max_in_flight,
            "labels": dict(membership.labels),
        },
    )


def load_membership(path: Path) -> Membership | None:
    """The membership, if the node has one.

    Raises:
        MembershipError: the file is damaged.
    """
    found = _read(path)
    if found is None:
        return None
    try:
        return Membership(
            cluster_id=found["cluster_id"],
            node_id=found["node_id"],
            name=found["name"],
            site=found["site"],
            endpoints=tuple(found["endpoints"]),
            tls_ca_der=_raw(found["tls_ca_der"]),
            authority_key=_raw(found["authority_key"]),
            owner_pin=_raw(found["owner_pin"]),
            api_key=Secret(found["api_key"]),
            telemetry_interval_s=float(found["telemetry_interval_s"]),
            max_in_flight=int(found["max_in_flight"]),
            labels={str(key): str(value) for key, value in found["labels"].items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path) from error


class BundleFile:
    """The trust bundle in force, on disk, with the links that lead to it from the pinned authority, and the command
    keys that any bundle so far has revoked. Whoever can change the file makes no bundle: every link is verified when
    it is read.

    Args:
        path: where it is kept.
        cluster_id: the node's cluster.
        authority_key: the pinned authority; each link of a later generation names its successor.
    """

    def __init__(self, path: Path, *, cluster_id: str, authority_key: bytes) -> None:
        self._path = path
        self._cluster_id = cluster_id
        self._authority_key = authority_key
        self._links: list[TrustState] = []

    def load(self) -> TrustState:
        """The stored bundle, verified link by link under the pin.

        Raises:
            MembershipError: missing, damaged, or not of the pinned authority or its successors.
        """
        try:
            stored = trust_pb2.HeldTrust.FromString(read_state(self._path) if self._path.exists() else b"")
            pinned = stored.links[0] if stored.links else trust_pb2.Signed()
            first = trust.first(
                pinned,
                cluster_id=self._cluster_id,
                authority_key=self._authority_key,
                revoked=stored.revoked_key_ids,
            )
            links = [first, *trust.steps(first, stored.links[1:])]
        except (DecodeError, trust.TrustError) as error:
            raise MembershipError(
                f"{self._path} holds no trust bundle of the pinned authority ({error}): restore the state folder, "
                "or enroll again with a new join token"
            ) from error
        self._links = links
        return links[-1]

    def save(self, *states: TrustState) -> None:
        """Replace the stored bundle atomically.

        Args:
            states: every step from the bundle that was loaded or saved last, oldest first.

        Raises:
            OSError: it cannot be written; the old one stands.
            TrustError: CHAIN_TOO_LONG; the old one stands.
        """
        links = self._links
        for state in states:
            links = trust.kept_links(links, state)
        held = trust_pb2.HeldTrust(links=[state.signed for state in links], revoked_key_ids=sorted(links[-1].revoked))
        write_private(self._path, held.SerializeToString())
        self._links = links


def _write(path: Path, content: dict[str, Any]) -> None:
    write_private(path, json.dumps({"format": _FORMAT, **content}, indent=2).encode())


def read_state(path: Path) -> bytes:
    """What a private file of the state folder holds. One that is open to others is not damaged: its repair is told.

    Raises:
        MembershipError: it cannot be read.
    """
    try:
        return read_private(path)
    except PrivateFileError as error:
        raise MembershipError(str(error)) from error


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found = json.loads(read_state(path))
    except ValueError as error:
        raise _damaged(path) from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise _damaged(path)
    return found


def _damaged(path: Path) -> MembershipError:
    return MembershipError(f"{path} is damaged or of another version: restore the state folder, or enroll again")


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _raw(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
