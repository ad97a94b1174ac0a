"""What happens, as it happens: commands that were issued, those that began to run, and how the cluster stands.

A run counts when the node's driver wrote it to its own log, so nothing here rests on what servers say.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from deploy.demo.admin import AdminClient
from fleet.v1 import admin_pb2

INTERVAL_S = 0.04
AGAIN_S = 0.1
GIVE_UP_S = 30.0
SHOWN_SECONDS = 60
_LOOK_S = 0.1
_STAND_S = 0.3
_AWAY = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}
)


@dataclass(slots=True)
class Counts:
    """Up to now. Times in seconds."""

    issued: int = 0
    run: int = 0
    twice: int = 0
    again: int = 0
    longest_gap_s: float = 0.0
    slowest_s: float = 0.0
    each_second: deque[int] = field(default_factory=lambda: deque([0], maxlen=SHOWN_SECONDS))
    failure: str = ""


class Load:
    """Issues a command to every node every 40 ms, and counts runs.

    Args:
        admin: its own connection.
        run_logs: of the nodes.
        name: begins every idempotency key.
    """

    def __init__(self, admin: AdminClient, run_logs: Iterable[Path], name: str) -> None:
        self.counts = Counts()
        self._admin = admin
        self._logs = dict.fromkeys(run_logs, 0)
        self._name = name
        self._issued: dict[str, float] = {}
        self._starts: Counter[str] = Counter()
        self._begun: dict[Path, float] = {}
        self._stopping = threading.Event()
        self._counted = threading.Event()
        self._threads = [
            threading.Thread(target=self._issue_all, name="load", daemon=True),
            threading.Thread(target=self._count_all, name="witness", daemon=True),
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Issue nothing more; counting goes on until `end`."""
        self._stopping.set()
        self._threads[0].join(GIVE_UP_S + 5)

    def end(self) -> None:
        """Count no more."""
        self._counted.set()
        self._threads[1].join(10)

    def lost(self) -> list[str]:
        """Issued, and not begun yet."""
        return [command_id for command_id in list(self._issued) if not self._starts[command_id]]

    @property
    def starts(self) -> Mapping[str, int]:
        """How often each command began to run, by its id in hex."""
        return self._starts

    @property
    def command_ids(self) -> list[str]:
        """Ids of all that was issued, in hex."""
        return list(self._issued)

    def _issue_all(self) -> None:
        number, due_s = 0, time.monotonic()
        while not self._stopping.is_set() and not self.counts.failure:
            number += 1
            self._issue(f"{self._name}-{number}")
            due_s = max(due_s + INTERVAL_S, time.monotonic() - 1)  # catch up, and not for ever
            self._stopping.wait(max(0.0, due_s - time.monotonic()))

    def _issue(self, key: str) -> None:
        began_s = time.monotonic()
        while True:
            try:
                answer = self._admin.issue("*", admin_pb2.CommandSpec(action="simulated.noop"), idempotency_key=key)
                break
            except ValueError:
                return  # the demo ended and closed the channel
            except grpc.RpcError as error:
                if error.code() not in _AWAY or time.monotonic() - began_s > GIVE_UP_S:
                    self.counts.failure = f"{error.code().name}: {error.details()}"
                    return
                self.counts.again += 1
                time.sleep(AGAIN_S)
        now_s = time.monotonic()
        self.counts.slowest_s = max(self.counts.slowest_s, now_s - began_s)
        self._issued.update((one.command_id.hex(), now_s) for one in answer.issued)
        self.counts.issued += len(answer.issued)
        if answer.refused:
            self.counts.failure = f"{answer.refused[0].reason}: {answer.refused[0].detail}"

    def _count_all(self) -> None:
        second = time.monotonic()
        while not self._counted.is_set():
            self._counted.wait(_LOOK_S)
            fresh = sum(self.read(path) for path in self._logs)
            self.counts.each_second[-1] += fresh
            while time.monotonic() - second >= 1:
                second += 1
                self.counts.each_second.append(0)
            if not self._stopping.is_set():
                self._note_gaps()

    def read(self, path: Path) -> int:
        """How many runs are new in a node's log; a line that is not whole yet is none."""
        try:
            with path.open("rb") as file:
                file.seek(self._logs[path])
                whole = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return 0
        if not whole:
            return 0
        self._logs[path] += len(whole) + 1
        fresh = 0
        for line in whole.splitlines():
            event = json.loads(line)
            if event["event"] == "start":
                fresh += 1
                self._starts[event["command_id"]] += 1
                self.counts.twice += self._starts[event["command_id"]] == 2
        if fresh:
            self.counts.run = len(self._starts)
            self._begun[path] = time.monotonic()
        return fresh

    def _note_gaps(self) -> None:
        now_s = time.monotonic()
        for begun_s in self._begun.values():
            self.counts.longest_gap_s = max(self.counts.longest_gap_s, now_s - begun_s)


class Standing:
    """How replicas and nodes stand, looked up again and again.

    Args:
        tell: told what changed, a line each.
    """

    def __init__(self, admin: AdminClient, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self.replicas: dict[str, admin_pb2.ReplicaView] = {}
        self.nodes: dict[str, admin_pb2.NodeView] = {}
        self._admin = admin
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look, name="standing", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """Look no more."""
        self._ending.set()
        self._thread.join(20)

    def online(self) -> dict[str, str]:
        """Replica by node, of the nodes that are online."""
        return {name: node.replica_id for name, node in self.nodes.items() if node.online}

    def _look(self) -> None:
        while not self._ending.wait(_STAND_S):
            before, was_at = self.replicas, self.online()
            try:
                self.replicas, self.nodes = self._admin.replicas(), self._admin.nodes()
            except (grpc.RpcError, ValueError):
                continue  # the replica that was asked went away: the next call finds the other one
            self._tell_changes(before, was_at)

    def _tell_changes(self, before: Mapping[str, admin_pb2.ReplicaView], was_at: Mapping[str, str]) -> None:
        for name, replica in self.replicas.items():
            if name in before and replica.state != before[name].state:
                self._tell(f"{name} is {replica.state}")
        moved = Counter(at for node, at in self.online().items() if was_at.get(node, at) != at)
        for name, count in moved.items():
            self._tell(f"{count} {'node' if count == 1 else 'nodes'} moved to {name}")
