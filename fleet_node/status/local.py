"""What the state folder tells, whether or not a daemon runs on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleet.identity import has_node_keys, load_node_keys, show_fingerprint
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import BundleFile, MembershipError, load_membership, load_pending
from fleet_node.status.client import DaemonAwayError, DaemonSilentError, ask
from fleet_node.status.people import known_people, people_status


def status(path: Path) -> Mapping[str, Any]:
    """Local state from the files, and under `daemon` what the running daemon says of itself, or null.

    Args:
        path: the state folder; one that is not there is not made.

    Raises:
        PrivateFileError, MembershipError: the folder's files cannot be used.
    """
    if not path.exists():
        return {"state_dir": str(path), "fingerprint": "", "enrollment": "none", "daemon": None, "daemon_problem": ""}
    folder = StateFolder(path)
    said: dict[str, Any] = {
        "state_dir": str(folder.path),
        "fingerprint": show_fingerprint(load_node_keys(folder.path).fingerprint) if has_node_keys(folder.path) else "",
        **_membership(folder),
        "daemon": None,
        "daemon_problem": "",
    }
    try:
        said["daemon"] = ask(folder.control_socket, "status")
    except DaemonAwayError:
        pass
    except DaemonSilentError as error:
        said["daemon_problem"] = str(error)
    return said


def _membership(folder: StateFolder) -> dict[str, Any]:
    membership = load_membership(folder.membership)
    if membership is None:
        pending = load_pending(folder.enrollment)
        if pending is None:
            return {"enrollment": "none"}
        return {"enrollment": "pending", "enrollment_id": pending.enrollment_id, "cluster_id": pending.cluster_id}
    return {
        "enrollment": "member",
        "cluster_id": membership.cluster_id,
        "node_id": membership.node_id,
        "name": membership.name,
        "site": membership.site,
        "endpoints": list(membership.endpoints),
        "authority_key": membership.authority_key.hex(),
        "owner": people_status(known_people(folder, membership)),
        "bundle": _bundle(folder, membership.cluster_id, membership.authority_key),
    }


def _bundle(folder: StateFolder, cluster_id: str, authority_key: bytes) -> dict[str, Any]:
    try:
        state = BundleFile(folder.bundle, cluster_id=cluster_id, authority_key=authority_key).load()
    except MembershipError as error:
        return {"problem": str(error)}
    return {"generation": state.generation, "number": state.number, "expires_at_ms": state.expires_at_ms}
