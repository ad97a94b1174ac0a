"""The config snapshot in force, durable in the state folder, and with it the newest version that was ever taken.

The file is a line of JSON, the floor, and then the signed snapshot. So the floor outlives damage to what follows it: a
node that lost its snapshot goes on with none, and still takes no older one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from google.protobuf.message import DecodeError

from fleet.identity import PrivateFileError, read_private, write_private
from fleet.v1 import trust_pb2
from fleet_node.routes.snapshot_rules import NEVER, Authority, Floor, Snapshot, SnapshotError, judge_snapshot

_FORMAT = 1
_MAX_HEAD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Kept:
    """What the file held.

    Args:
        snapshot: in force; None when there is none.
        floor: the newest version that was taken.
        problem: what is wrong with the file, for people; empty when nothing is.
    """

    snapshot: Snapshot | None = None
    floor: Floor = NEVER
    problem: str = ""


class SnapshotFile:
    """See the module.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, authority: Authority) -> Kept:
        """What was in force when the last process ended, verified again.

        What a former authority signed stays in force until the one in force signs another: that is what the process
        did that took it. What nobody signed is forgotten once `authority` is required, its version with it.

        Args:
            authority: in force.
        """
        try:
            raw = read_private(self._path)
        except PrivateFileError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return Kept()
            return Kept(problem=f"{error}; until then the node has no routes, and takes any version of them")
        line, _, body = raw.partition(b"\n")
        try:
            head = json.loads(line[:_MAX_HEAD_BYTES])
            floor = Floor(int(head["generation"]), int(head["version"]))
            signer, sha256 = bytes.fromhex(head["signer"]), bytes.fromhex(head["sha256"])
            if head["format"] != _FORMAT or floor.version < 1:
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            return Kept(problem=self._damaged("it does not even tell which version that was"))
        if authority.required and not signer:
            return Kept(
                problem=f"{self._path} holds routes that nobody signed: they count no more, the server sends others"
            )
        try:
            if hashlib.sha256(body).digest() != sha256:
                raise ValueError("bytes of it have changed")
            taken_under = replace(authority, public_key=signer, generation=floor.generation, required=bool(signer))
            snapshot = judge_snapshot(trust_pb2.Signed.FromString(body), taken_under, floor)
            if snapshot.floor != floor:
                raise ValueError("it is of another version than the file says")
        except (ValueError, DecodeError, SnapshotError) as error:
            return Kept(floor=floor, problem=self._damaged(f"version {floor.version} was the last one taken ({error})"))
        return Kept(snapshot, floor)

    def save(self, snapshot: Snapshot, authority: Authority) -> None:
        """Replace the file atomically.

        Args:
            authority: by which the snapshot was judged.

        Raises:
            OSError: it cannot be written; the old one stands.
        """
        body = snapshot.signed.SerializeToString()
        head = {
            "format": _FORMAT,
            "generation": snapshot.floor.generation,
            "version": snapshot.floor.version,
            "signer": authority.public_key.hex() if authority.required else "",
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        write_private(self._path, json.dumps(head).encode() + b"\n" + body)

    def _damaged(self, detail: str) -> str:
        return f"{self._path} is damaged: {detail}. The node goes on without routes until the server sends them again"
