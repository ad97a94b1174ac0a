"""`fleetctl drain wave --replicas`: a rolling upgrade, one replica after the other."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fleet_server.cli import drain_replica
from fleet_server.cli.failures import Failed, Unreachable
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.terminal import duration
from fleet_server.cli.wave_nodes import patiently
from fleet_server.cli.wave_rules import Tally

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2
    from fleet_server.cli.connection import Admin

_POLL_S = 1.0


class ReplicaWave:
    """One wave.

    Args:
        targets: replica ids; empty for all that are READY.
        return_s: seconds that a drained replica gets to be replaced by one that is READY.
        again: the command that goes on with this wave, without `--after`.
    """

    def __init__(
        self,
        invocation: Invocation,
        admin: Admin,
        targets: Sequence[str],
        *,
        after: str,
        deadline_s: int | None,
        reason: str,
        pause_s: int,
        return_s: int,
        again: str,
    ) -> None:
        self._invocation = invocation
        self._admin = admin
        self._targets = targets
        self._after = after
        self._deadline_s = deadline_s
        self._reason = reason
        self._pause_s = pause_s
        self._return_s = return_s
        self._again = again
        self.tally = Tally(0)
        self.order: list[str] = []

    def prepare(self) -> None:
        """Find the replicas, in the order of their ids.

        Raises:
            Failure: one that was named is not READY, or the server refuses.
        """
        ready = [each.replica_id for each in self._ready()]
        missing = [name for name in self._targets if name not in ready]
        if missing:
            raise Failed(f"replica {missing[0]} is not READY", hint="see `fleetctl replicas list`")
        self.order = sorted(name for name in (self._targets or ready) if name > self._after)

    def run(self) -> None:
        """Drain each, and wait until there are as many as before.

        Raises:
            Failure: one was lost, or not replaced: the wave stops, for nobody else may be missed.
        """
        for number, name in enumerate(self.order, 1):
            before = {(each.replica_id, each.started_at_ms) for each in self._ready()}
            started_at_ms = dict(before).get(name, 0)
            self._invocation.say(f"{name}: draining, {number} of {len(self.order)}")
            try:
                self._drain(name, started_at_ms)
                self._wait_replaced(name, before)
            except (Failed, Unreachable) as failure:
                self.tally.failed[name] = failure.message
                raise
            except KeyboardInterrupt:
                self._invocation.say(f"The wave stops here; the drain of {name} goes on. {self.how_to_go_on()}")
                raise
            self.tally.done.append(name)
            if self._pause_s and number < len(self.order):
                self._invocation.sleep(self._pause_s)

    def how_to_go_on(self) -> str:
        """What to do about a wave that did not come to its end."""
        behind = self.tally.done[-1] if self.tally.done else self._after
        after = f" --after {shlex.quote(behind)}" if behind else ""
        return f"Once all replicas are READY (`fleetctl replicas list`): `{self._again}{after}`"

    def _drain(self, name: str, started_at_ms: int) -> None:
        ended = self._ask(name, started_at_ms)
        if ended is not None and not ended.drained:
            raise Failed(
                f"replica {name} was lost before it was drained",
                hint=f"{drain_replica.AFTER_A_LOSS}. {self.how_to_go_on()}",
            )

    def _ask(self, name: str, started_at_ms: int) -> drain_replica.Ended | None:
        """How its drain ended; None when nobody can tell, and it is seen when it is back, or is not."""
        asked = drain_replica.request(name, self._deadline_s, self._reason, force=False)
        waited_s = 0.0
        while True:
            try:
                return drain_replica.follow(self._invocation, self._admin, asked)[1]
            except Unreachable as failure:
                self._invocation.say(f"{failure.message}: waiting for a replica that answers")
                row = self._same_process(name, started_at_ms)
                if row is not None and row.state == "LOST":  # and somebody else may have joined, who replaces nobody
                    return drain_replica.Ended(row, False, row.streams)
                if row is None or row.state != "READY":
                    return None
                if waited_s >= self._return_s:
                    raise
                # Whoever was to pass it on had gone, and nobody asked it; a second request would change nothing.
                self._invocation.sleep(_POLL_S)
                waited_s += _POLL_S + failure.waited_s

    def _wait_replaced(self, name: str, before: set[tuple[str, int]]) -> None:
        waited_s = 0.0
        while True:
            now = {(each.replica_id, each.started_at_ms) for each in self._ready()}
            if len(now) >= len(before) and now != before:
                return
            if waited_s >= self._return_s:
                raise Failed(
                    f"replica {name} was drained, and none is READY in its place after {duration(self._return_s)}",
                    hint=f"does it start again by itself? Look at its log. {self.how_to_go_on()}",
                )
            self._invocation.sleep(_POLL_S)
            waited_s += _POLL_S

    def _ready(self) -> list[admin_pb2.ReplicaView]:
        return [each for each in self._replicas() if each.state == "READY"]

    def _same_process(self, name: str, started_at_ms: int) -> admin_pb2.ReplicaView | None:
        """A replica as it is now; None when it has gone, or is another process since."""
        wanted = (name, started_at_ms)
        return next((each for each in self._replicas() if (each.replica_id, each.started_at_ms) == wanted), None)

    def _replicas(self) -> Sequence[admin_pb2.ReplicaView]:
        return patiently(self._invocation, lambda: drain_replica.replicas(self._admin), self._return_s)
